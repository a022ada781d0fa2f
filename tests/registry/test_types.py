"""What may stand in a body, and what is refused."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registryd.errors import Invalid
from registryd.registry.bodies import parse
from registryd.registry.types import (
    INSTANCE_ID_RE,
    NAME_RE,
    TAG_RE,
    VERSION_RE,
    Drain,
    HealthCheck,
    Heartbeat,
    HeartbeatBatch,
    Maintenance,
    Registration,
    default_instance_id,
    identity,
    renew_interval,
    split_identity,
)


def registration(**fields: Any) -> Registration:
    return parse(Registration, {"name": "chat", "endpoint": "http://h:1", **fields})


def refused(fields: dict[str, Any], model: Any = Registration) -> list[str]:
    """The pointers of what is wrong."""
    base = {"name": "chat", "endpoint": "http://h:1"} if model is Registration else {}
    with pytest.raises(Invalid) as caught:
        parse(model, base | fields)
    return [error.pointer for error in caught.value.errors]


PATTERNS = [
    ({"name": "{}"}, NAME_RE, "._-", ":~/+@"),
    ({"instanceId": "{}"}, INSTANCE_ID_RE, "._-:~", "/+@"),
    ({"zone": "{}"}, NAME_RE, "._-", ":/"),
    ({"version": "{}"}, VERSION_RE, "._-+~", ":/"),
    ({"metadata": {"environment": "{}"}}, NAME_RE, "._-", ":/"),
    ({"metadata": {"tags": ["{}"]}}, TAG_RE, "._-:/", "~+@,"),
    ({"capabilities": ["{}"]}, TAG_RE, "._-:/", "~+@,"),
    ({"models": ["{}"]}, TAG_RE, "._-:/", "~+@,"),
    ({"dependsOn": ["{}"]}, NAME_RE, "._-", ":/"),
]


@pytest.mark.parametrize(("body", "pattern", "inner", "illegal"), PATTERNS)
def test_names_are_held_to_their_pattern_in_full(
    body: Any, pattern: Any, inner: str, illegal: str
) -> None:
    def filled(text: str) -> Any:
        return json.loads(json.dumps(body).replace('"{}"', json.dumps(text)))

    good = ["a", "A9", "a" * 128, *[f"a{c}" for c in inner]]
    bad = ["", "a" * 129, "a\n", "\na", "a b", "é", "a\u0661", "a\0"]
    bad += [f"{c}a" for c in inner + illegal] + [f"a{c}a" for c in illegal]
    for text in good:
        registration(**filled(text))
        assert pattern.fullmatch(text)
    for text in bad:
        assert refused(filled(text)), text
        assert not pattern.fullmatch(text), text


@pytest.mark.parametrize("value", [1, True, None, ["a"], {"a": 1}, 1.5])
def test_a_name_is_a_string_and_nothing_turns_into_one(value: Any) -> None:
    assert refused({"name": value}) == ["/name"]


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://10.0.0.7:8080",
        "HTTPS://Example.com",
        "http://[::1]:80/a?b=c#d",
        "http://[fe80::1%25eth0]:8",
        "grpc://h:1",
        "redis://h",
        "tcp://h:65535",
        "http://h:",
    ],
)
def test_an_endpoint_is_an_absolute_url_and_kept_as_it_is(endpoint: str) -> None:
    assert registration(endpoint=endpoint).endpoint == endpoint


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "h:80",
        "/path",
        "//h",
        "http:",
        "http://",
        "http:///path",
        "http://:80",
        "http://h:65536",
        "http://h:-1",
        "http://h:0",
        "http://h:x",
        "http://[::1",
        "http://[nonsense]",
        "http://user@h",
        "http://user:password@h",
        "http://@h",
        "http://:@h",
        "http://good\\@evil",
        "javascript:alert(1)",
        "javascript://h/%0aalert(1)",
        "data:text/html,x",
        "file:///etc/passwd",
        "ftp://h",
        " http://h",
        "http://h ",
        "http://h\n",
        "ht\ntp://h",
        "http://h/\t",
        "http://h/é",
        'http://h/"',
        "http://h/<script>",
        "http://h/" + "a" * 2048,
        80,
        None,
    ],
)
def test_anything_else_is_no_endpoint(endpoint: Any) -> None:
    assert refused({"endpoint": endpoint}) == ["/endpoint"]


@pytest.mark.parametrize(
    ("endpoint", "instance_id"),
    [
        ("http://10.0.0.7:8080/path", "10.0.0.7-8080"),
        ("http://Host.Example", "host.example-80"),
        ("https://h", "h-443"),
        ("tcp://h", "h"),
        ("http://[2001:db8::1]:80", "2001-db8--1-80"),
        ("http://[::1]:80", "i--1-80"),
        ("http://_srv:1", "i_srv-1"),
    ],
)
def test_an_instance_without_an_id_is_called_after_its_endpoint(
    endpoint: str, instance_id: str
) -> None:
    assert default_instance_id(endpoint) == instance_id
    assert INSTANCE_ID_RE.fullmatch(instance_id)


def test_long_hosts_make_legal_ids_that_still_differ_by_port() -> None:
    host = "a" * 150
    one, other = (default_instance_id(f"http://{host}:{port}") for port in (80, 81))
    assert one != other
    assert INSTANCE_ID_RE.fullmatch(one)
    assert INSTANCE_ID_RE.fullmatch(other)


@given(
    st.from_regex(r"(http|tcp)://[a-z0-9._~!$&'()*,;=%-]{1,160}(:[1-9][0-9]{0,3})?", fullmatch=True)
)
def test_every_default_id_is_legal(endpoint: str) -> None:
    assert INSTANCE_ID_RE.fullmatch(default_instance_id(endpoint))


@given(st.from_regex(NAME_RE, fullmatch=True), st.from_regex(INSTANCE_ID_RE, fullmatch=True))
def test_an_identity_splits_one_way(service: str, instance_id: str) -> None:
    assert split_identity(identity(service, instance_id)) == (service, instance_id)


# --- numbers, booleans and times are not guessed

NO_NUMBERS = ["10", True, 10.0, 10.5, None, [10], ""]


@pytest.mark.parametrize("value", [value for value in NO_NUMBERS if value is not None])
@pytest.mark.parametrize("field", ["weight", "ttlSeconds"])
def test_a_number_in_a_registration_is_a_whole_json_number(field: str, value: Any) -> None:
    assert refused({field: value}) == [f"/{field}"]


@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize(
    "field", ["intervalMs", "timeoutMs", "failureThreshold", "successThreshold"]
)
def test_a_number_in_a_check_is_a_whole_json_number(field: str, value: Any) -> None:
    assert refused({field: value}, HealthCheck) == [f"/{field}"]


def test_status_codes_and_drain_times_are_whole_numbers() -> None:
    assert refused({"expectedStatusCodes": ["200"]}, HealthCheck) == ["/expectedStatusCodes/0"]
    for value in ("30", True, 30.0):
        assert refused({"seconds": value}, Drain) == ["/seconds"]


@pytest.mark.parametrize(
    ("field", "least", "most"), [("ttlSeconds", 2, 86_400), ("weight", 0, 65_535)]
)
def test_bounds_are_inclusive(field: str, least: int, most: int) -> None:
    registration(**{field: least})
    registration(**{field: most})
    assert refused({field: least - 1}) == refused({field: most + 1}) == [f"/{field}"]


@pytest.mark.parametrize(("value", "meant"), [(True, True), (False, False), (1, True), (0, False)])
def test_enabled_is_a_boolean_or_0_or_1(value: Any, meant: bool) -> None:
    assert parse(Maintenance, {"enabled": value}).enabled is meant


@pytest.mark.parametrize("value", ["yes", "true", "on", "0", 2, -1, 1.0, None, []])
def test_enabled_is_nothing_else(value: Any) -> None:
    assert refused({"enabled": value}, Maintenance) == ["/enabled"]


@pytest.mark.parametrize(
    "text", ["2030-01-31T12:00:00Z", "2030-01-31T13:00:00.000+01:00", "2030-01-31t12:00:00z"]
)
def test_a_time_has_an_offset_and_is_kept_in_utc(text: str) -> None:
    until = parse(Maintenance, {"enabled": True, "until": text}).until
    assert until == datetime(2030, 1, 31, 12, tzinfo=UTC)
    assert until.tzinfo is UTC


@pytest.mark.parametrize(
    "value",
    [
        1893456000,
        1893456000.5,
        "1893456000",
        True,
        "",
        "tomorrow",
        "2030-01-31",
        "2030-01-31T12:00:00",
        "2030-02-30T12:00:00Z",
        "9999-12-31T23:59:59-01:00",
        "0001-01-01T00:00:00+01:00",
        "2030-01-31T12:00:00Z\n",
    ],
)
def test_anything_else_is_no_time(value: Any) -> None:
    assert refused({"enabled": True, "until": value}, Maintenance) == ["/until"]


# --- the rest of a registration


def test_both_styles_are_read_and_free_form_keys_are_left_alone() -> None:
    given = {"a_b": {"c_d": 1}, "aB": 2, "model_config": 3, "__class__": 4}
    one = registration(ttl_seconds=5, resource_limits=given, metadata=given, depends_on=["x"])
    other = registration(ttlSeconds=5, resourceLimits=given, metadata=given, dependsOn=["x"])
    assert one == other
    assert one.resource_limits == one.metadata.model_extra == given


def test_unknown_fields_are_named() -> None:
    assert refused({"colour": 1, "healthCheck": {"shade": 2}}) == ["/healthCheck/shade", "/colour"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [("prod", "production"), ("DEV", "development"), ("stg", "staging"), ("qa", "qa")],
)
def test_environments_are_known_by_their_short_names(given: str, kept: str) -> None:
    assert registration(metadata={"environment": given}).metadata.environment == kept


def test_tags_lose_their_repeats_and_keep_their_order() -> None:
    assert registration(metadata={"tags": ["b", "a", "b"]}).metadata.tags == ["b", "a"]


def test_a_bare_name_is_a_capability_and_none_may_come_twice_in_one_version() -> None:
    [claim] = registration(capabilities=["chat"]).capabilities
    assert (claim.name, claim.version) == ("chat", "1.0.0")
    assert (
        len(registration(capabilities=["chat", {"name": "chat", "version": "2"}]).capabilities) == 2
    )
    assert refused({"capabilities": ["chat", {"name": "chat"}]}) == ["/capabilities"]


@pytest.mark.parametrize(
    ("field", "most"), [("capabilities", 128), ("models", 256), ("dependsOn", 128)]
)
def test_lists_are_bounded(field: str, most: int) -> None:
    names = [f"n{number}" for number in range(most + 1)]
    registration(**{field: names[:-1]})
    assert refused({field: names}) == [f"/{field}"]


def test_a_short_interval_brings_a_short_timeout_and_a_given_one_has_to_fit() -> None:
    assert parse(HealthCheck, {"intervalMs": 100}).timeout_ms == 50
    assert parse(HealthCheck, {"intervalMs": 60_000}).timeout_ms == 5_000
    assert parse(HealthCheck, {"intervalMs": 100, "timeoutMs": 99}).timeout_ms == 99
    assert refused({"intervalMs": 100, "timeoutMs": 100}, HealthCheck) == [""]
    assert refused({"intervalMs": 99, "timeoutMs": 1}, HealthCheck) == ["/intervalMs"]


@pytest.mark.parametrize(
    "check",
    [
        {"path": "health"},
        {"path": "/a b"},
        {"path": "/a\n"},
        {"path": "/é"},
        {"url": "javascript:alert(1)"},
        {"headers": {"X:": "a"}},
        {"headers": {"X": "a\r\nY: b"}},
        {"headers": {"": "a"}},
        {"method": "get"},
        {"type": "exec"},
        {"expectedStatusCodes": []},
    ],
)
def test_a_check_that_could_not_be_made_is_refused(check: dict[str, Any]) -> None:
    assert len(refused(check, HealthCheck)) == 1


@pytest.mark.parametrize(
    ("health", "claim"),
    [
        (None, ""),
        ({}, ""),
        ({"status": "healthy", "since": "x", "lastCheck": 5}, "healthy"),
        ({"status": "down"}, "unhealthy"),
        ({"status": "unknown"}, ""),
        ({"status": "maintenance"}, ""),
    ],
)
def test_an_instance_claims_only_what_it_can_know(health: Any, claim: str) -> None:
    assert registration(health=health).claim == claim


@pytest.mark.parametrize("text", ["", "a" * 65, "a\n", "a:b", "é"])
def test_an_incarnation_is_a_short_plain_word(text: str) -> None:
    assert refused({"incarnation": text}) == ["/incarnation"]
    assert refused({"incarnation": text}, Heartbeat) == ["/incarnation"]


def test_a_batch_names_what_is_wrong_in_it() -> None:
    beats = [{"name": "a", "instanceId": "b"}, {"name": "a"}, {"name": "a", "instance_id": "é"}]
    pointers = refused({"heartbeats": beats}, HeartbeatBatch)
    assert pointers == ["/heartbeats/1/instanceId", "/heartbeats/2/instance_id"]


@pytest.mark.parametrize(("ttl", "interval"), [(2, 1), (3, 1), (10, 3), (300, 100)])
def test_two_heartbeats_may_be_lost(ttl: int, interval: int) -> None:
    assert renew_interval(ttl) == interval
