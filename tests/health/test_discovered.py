"""What instances tell of themselves in the body of their health answer."""

from typing import Any

import pytest

from registryd.health.discovered import Seen, note, offered, read, standing
from registryd.registry.document import Offer
from registryd.registry.types import MAX_MODELS


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


def test_features_count_that_are_mapped_or_are_capabilities_by_name() -> None:
    told = {"features": ["chat", "loras", "speak", "tts"], "models": ["m1"]}
    mapping = {"tts": "speech", "speak": "speech"}
    assert offered(told, mapping) == Offer((("chat", "1.0.0"), ("speech", "1.0.0")), ("m1",))
    assert offered({"features": ["chat"]}, {"chat": "talk"}).capabilities == (("talk", "1.0.0"),)
    assert offered({"features": ["loras"], "limits": {"rps": 5}}, {}) == Offer()


def counting(*named: str) -> list[tuple[str, str]]:
    """What counts after each probe, and for how long each was missing; a word is a capability or, with a
    dot in front, a model."""
    offer, missing, shown = Offer(), "", []
    for words in named:
        now = Offer(
            tuple((word, "1.0.0") for word in words.split() if word[0] != "."),
            tuple(word for word in words.split() if word[0] == "."),
        )
        offer, missing = standing(offer, missing, now)
        names = [name for name, _ in offer.capabilities]
        shown.append((" ".join([*names, *offer.models]), missing))
    return shown


def test_each_goes_with_the_third_probe_in_a_row_that_does_not_name_it() -> None:
    assert counting("a b .m", "a", "a .m", "a", "b", "b", "b") == [
        ("a b .m", ""),
        ("a b .m", "011"),
        ("a b .m", "020"),
        ("a .m", "01"),
        ("a b .m", "102"),
        ("a b", "20"),
        ("b", ""),
    ]


def test_what_is_named_again_in_time_never_went() -> None:
    shown = {words for words, _ in counting("a", "", "", "a", "", "", "a", "", "")}
    assert shown == {"a"}


def test_how_long_something_was_missing_counts_only_for_what_stood_then() -> None:
    offer, missing = standing(Offer((), ("x", "y")), "2", Offer())
    assert (offer, missing) == (Offer((), ("x", "y")), "11")


def test_what_counts_stays_bounded_whatever_is_named() -> None:
    offer, missing = Offer(), ""
    for batch in "abc":
        named = Offer((), tuple(sorted(f"{batch}{number}" for number in range(MAX_MODELS))))
        offer, missing = standing(offer, missing, named)
    assert offer == named


def test_an_offer_reads_as_it_was_written() -> None:
    offer = Offer((("a", "1.0.0"),), ("m/1",))
    assert Offer.decode(offer.encode()) == offer
    assert Offer().encode() == ""
    assert Offer.decode("") == Offer()
