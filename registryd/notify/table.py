"""Every kind of notifier by the word that names it."""

from collections.abc import Mapping

from registryd.kit.clock import Clock
from registryd.notify.types import Egress, Notifier
from registryd.notify.webhook import WebhookNotifier


def notifiers(egress: Egress, clock: Clock) -> Mapping[str, Notifier]:
    return {
        "webhook": WebhookNotifier(egress, clock),
    }
