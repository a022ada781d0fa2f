"""What a health check sends along: kept for the probe, and shown to nobody."""

import json

import pytest

from registryd.errors import Invalid
from registryd.registry.sealed import is_masked, masked, sealed, server_of, unmasked
from registryd.registry.types import HealthCheck

ENDPOINT = "http://10.0.0.1:8080"
CHECK = HealthCheck(headers={"Authorization": "Bearer hunter2", "X-A": "b"}, body="pass=hunter2")
KNOWN = {"headers": {"Authorization": "Bearer hunter2", "X-A": "b"}, "body": "pass=hunter2"}


def document(endpoint: str = ENDPOINT, **check: object) -> bytes:
    return json.dumps({"endpoint": endpoint, "healthCheck": check}).encode()


def test_a_mask_takes_the_place_of_each_value() -> None:
    assert sealed(CHECK) == KNOWN
    shown = masked(CHECK)
    assert shown.headers == {"Authorization": "****", "X-A": "****"}
    assert shown.body == "****"
    assert is_masked(shown)
    assert not is_masked(CHECK)


def test_a_check_without_such_values_stays_as_it_is() -> None:
    bare = HealthCheck(path="/ready")
    assert masked(bare) is bare
    assert sealed(bare) == {}
    assert not is_masked(bare)


def test_a_mask_that_comes_back_is_the_value_that_is_held() -> None:
    held = server_of(document())
    assert sealed(unmasked(ENDPOINT, masked(CHECK), KNOWN, held)) == KNOWN
    half = HealthCheck(headers={"authorization": "****", "X-A": "new"})
    back = unmasked(ENDPOINT, half, KNOWN, held)
    assert back.headers == {"authorization": "Bearer hunter2", "X-A": "new"}
    assert back.body is None


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://10.0.0.2:8080", None),
        ("http://10.0.0.1:8081", None),
        ("https://10.0.0.1:8080", None),
        (ENDPOINT, "http://10.6.6.6/health"),
    ],
)
def test_a_value_is_not_sent_to_another_server_than_it_was_meant_for(
    endpoint: str, url: str | None
) -> None:
    check = masked(CHECK).model_copy(update={"url": url})
    with pytest.raises(Invalid) as refused:
        unmasked(endpoint, check, KNOWN, server_of(document()))
    assert [one.pointer for one in refused.value.errors] == [
        "/healthCheck/headers/Authorization",
        "/healthCheck/headers/X-A",
        "/healthCheck/body",
    ]


def test_a_mask_of_what_nobody_knows_is_refused() -> None:
    with pytest.raises(Invalid):
        unmasked(ENDPOINT, masked(CHECK), {}, None)
    with pytest.raises(Invalid) as refused:
        unmasked(ENDPOINT, masked(CHECK), {"headers": KNOWN["headers"]}, server_of(document()))
    assert [one.pointer for one in refused.value.errors] == ["/healthCheck/body"]


def test_the_server_is_that_of_the_checks_own_url_where_it_has_one() -> None:
    assert server_of(document(url="HTTPS://Checks.example/x")) == (
        "https",
        "checks.example",
        None,
        True,
    )


def test_a_value_is_not_sent_where_nobody_looks_at_the_certificate_any_more() -> None:
    endpoint = "https://10.0.0.1:8080"
    careless = masked(CHECK).model_copy(update={"tls_skip_verify": True})
    with pytest.raises(Invalid):
        unmasked(endpoint, careless, KNOWN, server_of(document(endpoint)))
    held = server_of(document(endpoint, tlsSkipVerify=True))
    assert sealed(unmasked(endpoint, careless, KNOWN, held)) == KNOWN


def test_values_are_in_no_representation() -> None:
    assert "hunter2" not in repr(sealed(CHECK))
