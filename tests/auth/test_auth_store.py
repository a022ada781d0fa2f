"""Keys and the record of access in the store, and the keyring that follows it."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from credentials import MovedClock

from registryd.auth import apikey, keyfile
from registryd.auth.keyring import Keyring
from registryd.auth.store import FORGOTTEN_AFTER, RECORD_LENGTH, AuthStore, Entry
from registryd.auth.types import ApiKey
from registryd.auth.watched import WatchedFile
from registryd.errors import NotFound, StorageUnavailable
from registryd.storage.connection import Connection
from registryd.storage.keys import Keys
from registryd.web.caller import Permission


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


@pytest.fixture
def auth_store(connection: Connection, keys: Keys) -> AuthStore:
    return AuthStore(connection, keys)


def made(clock: MovedClock, **more: Any) -> tuple[str, ApiKey]:
    fields: dict[str, Any] = {"name": "ci ✓", "now": clock.now(), "expires_at": None, **more}
    return apikey.make(Permission.WRITER, ("a-", "b-"), **fields)


async def test_a_key_comes_back_as_it_was_put_and_its_text_is_not_in_the_store(
    auth_store: AuthStore, connection: Connection, clock: MovedClock
) -> None:
    text, key = made(clock, expires_at=clock.now() + timedelta(days=1))
    await auth_store.put(key, clock.now())
    _, found = await auth_store.keys()
    assert found == {key.id: key}
    everything = repr(await connection.call("HGETALL", "ossa:auth:keys"))
    assert text not in everything
    assert text.split("_")[2] not in everything
    names = [name async for name in connection.scan("ossa:", 100)]
    assert not any(name.startswith("ossa:services:") for name in names)


async def test_every_change_has_a_revision_of_its_own(
    auth_store: AuthStore, clock: MovedClock
) -> None:
    _, key = made(clock)
    seen = [await auth_store.revision()]
    await auth_store.put(key, clock.now())
    seen.append(await auth_store.revision())
    await auth_store.revoke(key.id, clock.now())
    seen.append(await auth_store.revision())
    assert len(set(seen)) == 3
    assert (await auth_store.keys())[0] == seen[-1]


async def test_a_revoked_key_stays_listed_with_its_time_and_is_revoked_once(
    auth_store: AuthStore, clock: MovedClock
) -> None:
    _, key = made(clock)
    await auth_store.put(key, clock.now())
    first = await auth_store.revoke(key.id, clock.now())
    clock.move(timedelta(hours=1))
    assert await auth_store.revoke(key.id, clock.now()) == first
    for absent in ("nobody", "revision"):
        with pytest.raises(NotFound):
            await auth_store.revoke(absent, clock.now())


async def test_keys_that_have_not_held_for_long_are_forgotten(
    auth_store: AuthStore, clock: MovedClock
) -> None:
    _, revoked = made(clock)
    _, expiring = made(clock, expires_at=clock.now() + timedelta(seconds=1))
    _, lasting = made(clock)
    for key in (revoked, expiring, lasting):
        await auth_store.put(key, clock.now())
    await auth_store.revoke(revoked.id, clock.now())
    clock.move(FORGOTTEN_AFTER)
    _, new = made(clock)
    await auth_store.put(new, clock.now())
    assert (await auth_store.keys())[1].keys() == {expiring.id, lasting.id, new.id}
    clock.move(timedelta(seconds=1))
    await auth_store.put(new, clock.now())
    assert (await auth_store.keys())[1].keys() == {lasting.id, new.id}


async def test_a_row_that_cannot_be_read_locks_nobody_else_out(
    auth_store: AuthStore, connection: Connection, clock: MovedClock
) -> None:
    _, key = made(clock)
    await auth_store.put(key, clock.now())
    for row in ("nonsense", "{}", "[]", '{"sha256": "zz"}'):
        await connection.call("HSET", "ossa:auth:keys", row, row)
    assert (await auth_store.keys())[1] == {key.id: key}


# --- the keyring


async def test_a_new_and_a_revoked_key_are_noticed_by_the_next_look(
    auth_store: AuthStore, clock: MovedClock
) -> None:
    changes = []
    keyring = Keyring(auth_store, clock)
    keyring.changed = lambda: changes.append(len(keyring.known))
    await keyring.load()
    text, key = made(clock)
    await auth_store.put(key, clock.now())
    await keyring.turn()
    await keyring.turn()
    assert keyring.known.find(text) == key
    await auth_store.revoke(key.id, clock.now())
    await keyring.turn()
    found = keyring.known.find(text)
    assert found is not None
    assert found.revoked_at == clock.now()
    assert changes == [0, 1, 1], "each change once, and none without one"


class Counting(AuthStore):
    asked = 0

    async def revision(self) -> bytes:
        self.asked += 1
        return await super().revision()


async def test_looks_for_unknown_keys_are_rationed(
    connection: Connection, keys: Keys, clock: MovedClock
) -> None:
    store = Counting(connection, keys)
    keyring = Keyring(store, clock)
    await keyring.load()
    await keyring.look()
    text, key = made(clock)
    await store.put(key, clock.now())
    looks = [asyncio.create_task(keyring.look()) for _ in range(50)]
    looks[0].cancel()
    await asyncio.gather(*looks, return_exceptions=True)
    assert keyring.known.find(text) == key
    assert store.asked == 3, "one at the start, one at once, and one for fifty who wait a little"


class Leaving(AuthStore):
    away = False

    async def revision(self) -> bytes:
        self._here()
        return await super().revision()

    async def mark_used(self, *arguments: Any) -> None:
        self._here()
        await super().mark_used(*arguments)

    def _here(self) -> None:
        if self.away:
            raise StorageUnavailable("it is away")


async def test_without_the_store_what_is_known_goes_on(
    connection: Connection, keys: Keys, clock: MovedClock
) -> None:
    store = Leaving(connection, keys)
    keyring = Keyring(store, clock)
    text, key = made(clock)
    await store.put(key, clock.now())
    await keyring.load()
    store.away = True
    await keyring.turn()
    await keyring.look()
    keyring.used.add(key.id)
    await keyring.write_uses()
    assert keyring.known.find(text) == key
    assert keyring.used == {key.id}
    store.away = False
    await keyring.write_uses()
    assert await store.last_used() == {key.id: clock.now()}


async def test_uses_are_written_down_of_stored_keys_alone(
    auth_store: AuthStore, clock: MovedClock, tmp_path: Path
) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text("- {id: filed, role: reader, key: 0123456789abcdef}")
    keyring = Keyring(auth_store, clock, WatchedFile(path, keyfile.read))
    _, key = made(clock)
    await auth_store.put(key, clock.now())
    await keyring.load()
    keyring.used |= {key.id, "filed"}
    await keyring.write_uses()
    assert await auth_store.last_used() == {key.id: clock.now()}
    path.write_text("[]")
    await keyring.turn()
    assert not keyring.known.filed


# --- the record


def entry(clock: MovedClock, outcome: str, detail: str = "") -> Entry:
    return Entry(clock.now(), "anonymous@10.0.0.7", "r-1", "GET", "/services", outcome, detail)


async def test_the_record_has_the_newest_of_both_kinds_first(
    auth_store: AuthStore, clock: MovedClock
) -> None:
    for number in range(4):
        outcome = "done" if number % 2 else "forbidden"
        await auth_store.record([entry(clock, outcome, str(number))])
        await asyncio.sleep(0.002)  # the store tells them apart by the millisecond
    found = await auth_store.recorded(3)
    assert [(one["outcome"], one["detail"]) for one in found] == [
        ("done", "3"), ("forbidden", "2"), ("done", "1"),
    ]  # fmt: skip


async def test_a_flood_of_denials_pushes_no_deed_out(
    auth_store: AuthStore, connection: Connection, clock: MovedClock
) -> None:
    await auth_store.record([entry(clock, "done")])
    flood = [entry(clock, "forbidden")] * 500
    for _ in range(RECORD_LENGTH // 500 + 2):
        await auth_store.record(flood)
    assert await connection.call("XLEN", "ossa:auth:denied") < RECORD_LENGTH + 500
    assert await connection.call("XLEN", "ossa:auth:done") == 1
