"""Secrets and signatures are those of Standard Webhooks."""

import base64
import time

import pytest
from standardwebhooks.webhooks import Webhook

from registryd.notify.signing import key_of, new_secret, signature


def test_a_new_secret_signs_so_that_others_can_verify_it() -> None:
    secret, body, now = new_secret(), b'{"a":1}', int(time.time())
    headers = {
        "webhook-id": "m1",
        "webhook-timestamp": str(now),
        "webhook-signature": signature([key_of(secret)], "m1", now, body),
    }
    assert Webhook(secret).verify(body, headers) == {"a": 1}


def test_two_keys_give_two_signatures() -> None:
    one, two = key_of(new_secret()), key_of(new_secret())
    both = signature([one, two], "m", 1, b"x").split(" ")
    assert both == [signature([one], "m", 1, b"x"), signature([two], "m", 1, b"x")]


def test_no_two_secrets_are_alike() -> None:
    assert len({new_secret() for _ in range(50)}) == 50


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "whsec_",
        base64.b64encode(b"k" * 32).decode(),
        "whsec_" + base64.b64encode(b"k" * 23).decode(),
        "whsec_" + base64.b64encode(b"k" * 65).decode(),
        "whsec_not*base64*at*all*but*quite*long*enough==",
        "whsec_" + "é" * 40,
    ],
)
def test_what_is_no_secret_is_refused_without_being_quoted(secret: str) -> None:
    with pytest.raises(ValueError, match="whsec_") as caught:
        key_of(secret)
    assert len(secret) < 8 or secret not in str(caught.value)
    assert caught.value.__context__ is None
