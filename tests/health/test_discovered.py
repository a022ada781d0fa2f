"""What instances tell of themselves in the body of their health answer."""

from typing import Any

import pytest

from registryd.health.discovered import Seen, note, read


def test_the_five_parts_are_read() -> None:
    body = {
        "status": "healthy",
        "version": "1.2",
        "api_version": "2",
        "features": ["b", "a", "b"],
        "models": {"m": True, "off": False},
        "limits": {"rps": 5},
    }
    assert read(body) == {
        "version": "1.2",
        "apiVersion": "2",
        "features": ["a", "b"],
        "models": ["m"],
        "limits": {"rps": 5},
    }


@pytest.mark.parametrize(
    "body",
    [
        None,
        {},
        {"version": 3},
        {"version": "<script>"},
        {"features": "chat"},
        {"features": ["<b>", 3, None]},
        {"limits": {}},
        {"limits": {"x": "y" * 5000}},
    ],
)
def test_what_is_not_well_formed_is_not_there(body: dict[str, Any] | None) -> None:
    assert read(body) == {}


def test_it_is_stored_when_it_changed_and_gone_after_three_probes_without() -> None:
    seen, told = Seen(), []
    one, two = {"version": "1"}, {"version": "2"}
    bodies: list[dict[str, Any]] = [one, one, two, {}, {}, two, {}, {}, {}, {}]
    for number, found in enumerate(bodies):
        seen, text = note(seen, found, now=str(number))
        told.append(text)
    assert told == ['{"version":"1"}', "", '{"version":"2"}', "", "", "", "", "", "none", ""]


def test_the_moment_is_that_of_the_last_sight() -> None:
    seen, _ = note(Seen(), {"version": "1"}, now="1")
    seen, _ = note(seen, {"version": "1"}, now="2")
    seen, _ = note(seen, {}, now="3")
    assert seen.at == "2"
