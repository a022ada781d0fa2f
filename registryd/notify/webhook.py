"""Tells a web server by POST, signed as Standard Webhooks asks."""

from email.utils import parsedate_to_datetime
from typing import Final

from registryd.errors import EgressDenied, OutboundFailed
from registryd.kit.clock import Clock
from registryd.notify.signing import key_of, signature
from registryd.notify.types import MAX_ANSWER_BYTES, Egress, Notice, Receipt, Reply, Target

GONE: Final = 410
BUSY: Final = frozenset({429, 503})


class WebhookNotifier:
    def __init__(self, egress: Egress, clock: Clock) -> None:
        self._egress = egress
        self._clock = clock

    async def notify(self, target: Target, notice: Notice) -> Receipt:
        began = self._clock.monotonic()
        timestamp = int(self._clock.now().timestamp())
        keys = [key_of(secret) for secret in target.secrets]
        try:
            answer = await self._egress.request(
                "POST",
                target.url,
                headers={
                    "Content-Type": notice.content_type,
                    "webhook-id": notice.id,
                    "webhook-timestamp": str(timestamp),
                    "webhook-signature": signature(keys, notice.id, timestamp, notice.body),
                },
                body=notice.body,
                timeout=target.timeout,
                max_body=MAX_ANSWER_BYTES,
            )
        except (EgressDenied, OutboundFailed) as error:
            return Receipt(outcome="failed", duration_ms=self._since(began), error=error.detail)
        duration = self._since(began)
        if 200 <= answer.status < 300:
            return Receipt(outcome="delivered", duration_ms=duration, status=answer.status)
        return Receipt(
            outcome="gone" if answer.status == GONE else "failed",
            duration_ms=duration,
            status=answer.status,
            error=f"HTTP {answer.status}",
            retry_after_seconds=self._retry_after(answer),
        )

    def _since(self, began: float) -> float:
        return round((self._clock.monotonic() - began) * 1000, 1)

    def _retry_after(self, answer: Reply) -> float | None:
        """Retry-After in seconds, from a number or a date, where the status makes it mean something."""
        text = next((v for k, v in answer.headers.items() if k.lower() == "retry-after"), "")
        text = text.strip()
        if answer.status not in BUSY or not text:
            return None
        if text.isascii() and text.isdigit() and len(text) <= 9:
            return float(text)
        try:
            moment = parsedate_to_datetime(text)
        except ValueError:
            return None
        if moment.tzinfo is None:  # a date without a zone, "-0000", which HTTP does not know
            return None
        return max(0.0, (moment - self._clock.now()).total_seconds())
