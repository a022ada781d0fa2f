"""API keys as text: made, recognised, compared."""

from datetime import timedelta
from typing import Any

import pytest
from credentials import MovedClock

from registryd.auth import apikey
from registryd.auth.apikey import KeySet
from registryd.auth.types import ApiKey, Reason, Rejected
from registryd.web.caller import Permission

NOW = MovedClock().now()


def made(**more: Any) -> tuple[str, ApiKey]:
    fields: dict[str, Any] = {"name": "", "now": NOW, "expires_at": None, **more}
    return apikey.make(Permission.WRITER, ("a-",), **fields)


def test_a_made_key_is_found_by_its_text_and_its_text_is_nowhere_kept() -> None:
    text, key = made(name="ci")
    assert apikey.identity_of(text) == key.id
    assert KeySet({key.id: key}).find(text) == key
    assert text.split("_")[2] not in repr(key)
    assert (key.role, key.prefixes, key.name) == (Permission.WRITER, ("a-",), "ci")
    assert key.caller.name == f"key:{key.id}"


def test_no_two_keys_are_alike_and_all_have_one_shape() -> None:
    texts = {made()[0] for _ in range(200)}
    assert len(texts) == 200
    assert {len(text) for text in texts} == {4 + 10 + 1 + 43 + 6}


def test_any_one_wrong_character_is_noticed_without_a_look_up() -> None:
    text, _ = made()
    for at in range(len(apikey.MARK), len(text)):
        for other in {*"0aZ_-"} - {text[at]}:
            with pytest.raises(Rejected) as caught:
                apikey.identity_of(text[:at] + other + text[at + 1 :])
            assert caught.value.reason is Reason.MALFORMED
            assert text[15:50] not in caught.value.detail


@pytest.mark.parametrize("change", [lambda one: one[:-1], lambda one: one + "0", str.upper])
def test_what_is_cut_lengthened_or_shouted_is_no_key(change: Any) -> None:
    text = change(made()[0])
    if text.startswith(apikey.MARK):
        with pytest.raises(Rejected):
            apikey.identity_of(text)
    else:
        assert apikey.identity_of(text) is None


def test_another_key_with_the_same_id_is_not_the_key() -> None:
    _, key = made()
    text, other = made()
    assert KeySet({other.id: key}).find(text) is None


def test_a_key_made_elsewhere_is_found_by_its_hash_and_the_file_counts_before_the_store() -> None:
    foreign = ApiKey("consul", apikey.digest("0b8a5b5a-consul"), Permission.READER)
    assert KeySet(filed=(foreign,)).find("0b8a5b5a-consul") == foreign
    assert KeySet(filed=(foreign,)).find("0b8a5b5a-consuL") is None
    text, stored = made()
    filed = ApiKey("again", apikey.digest(text), Permission.ADMIN)
    assert KeySet({stored.id: stored}, (filed,)).find(text) == filed


def test_an_unknown_id_costs_as_many_comparisons_as_a_known_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text, key = made()
    strange, _ = made()
    compared = []
    monkeypatch.setattr(apikey.hmac, "compare_digest", lambda *pair: compared.append(pair))
    for each in (text, strange):
        KeySet({key.id: key}).find(each)
    assert [len(one) for one in compared] == [2, 2]


def test_a_key_holds_until_it_expires_or_is_revoked() -> None:
    _, key = made(expires_at=NOW + timedelta(seconds=1))
    assert apikey.judge(key, NOW) is key
    reasons = []
    revoked = ApiKey(key.id, key.digest, key.role, revoked_at=NOW)
    for found, now in ((key, NOW + timedelta(seconds=1)), (revoked, NOW), (None, NOW)):
        with pytest.raises(Rejected) as caught:
            apikey.judge(found, now)
        reasons.append(caught.value.reason)
    assert reasons == [Reason.EXPIRED, Reason.REVOKED, Reason.UNKNOWN]
