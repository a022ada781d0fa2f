"""Long drills: `make drill NAME=killing`. Each prints a table of what was lost and for how long.

`REGISTRYD_DRILL_SECONDS` sets the length of the load; 300 if it is not set.
"""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
import pytest
from processes import Answer, Machine, free_port, until

pytestmark = [pytest.mark.drill, pytest.mark.timeout(0)]

TTL = 4
BEAT_EVERY = 1.0


@dataclass
class Books:
    """What clients were promised, and what came of it."""

    alive: set[str] = field(default_factory=set)
    """Acknowledged, and renewed every second since."""
    silent: set[str] = field(default_factory=set)
    """Acknowledged, and never renewed: they have to expire."""
    left: set[str] = field(default_factory=set)
    """Deregistered, and acknowledged to be."""
    wrongly_expired: int = 0
    doubtful: int = 0
    """Writes whose answer never came: nothing was promised."""
    answers: Counter[str] = field(default_factory=Counter)
    gaps: list[float] = field(default_factory=list)
    """Seconds from a kill to the next acknowledged write."""
    resurrected: int = 0


async def test_killing_daemons_and_the_store_again_and_again(machine: Machine) -> None:
    seconds = float(os.environ.get("REGISTRYD_DRILL_SECONDS", "300"))
    rng = random.Random(1)
    env = {"REGISTRYD_REGISTRY__GUARD__ENABLED": "false"}
    ports = {"first": str(free_port()), "second": str(free_port())}
    owner = await machine.start("--port", ports["first"], env=env)
    url = owner.store_url
    nodes = {
        "first": owner,
        "second": await machine.start(
            *("--redis-url", url, "--port", ports["second"]), data="none", env=env
        ),
    }
    books = Books()
    end = time.monotonic() + seconds

    async def ask(kind: str, call: str, identity: str, **fields: object) -> Answer | None:
        """Tries one node and then the other, as a client does. None when nobody promised anything."""
        names = list(nodes)
        rng.shuffle(names)
        for name in names:
            try:
                answer: Answer = await getattr(nodes[name], call)(identity, **fields)
            except (aiohttp.ClientError, ConnectionError, TimeoutError):
                books.answers[f"{kind}: no answer"] += 1
                continue
            books.answers[f"{kind}: {answer[0]}"] += 1
            if answer[0] != 503:
                return answer
        return None

    async def live(number: int) -> None:
        """One service: registers, renews each second, now and then leaves and comes anew."""
        life = 0
        while time.monotonic() < end:
            life += 1
            identity = f"live:{number}-{life}"
            answer = await ask("register", "register", identity, ttlSeconds=TTL)
            if answer is None or answer[0] != 201:
                books.doubtful += 1
                await asyncio.sleep(0.2)
                continue
            books.alive.add(identity)
            renewed = time.monotonic()
            for _ in range(rng.randint(5, 30)):
                if time.monotonic() > end:
                    return
                await asyncio.sleep(BEAT_EVERY)
                answer = await ask("heartbeat", "beat", identity)
                if answer is not None and answer[0] == 404:
                    # Its own fault only if no node could be reached for a whole lease.
                    books.wrongly_expired += time.monotonic() - renewed < TTL
                    books.alive.discard(identity)
                    break
                if answer is not None:
                    renewed = time.monotonic()
            else:
                books.alive.discard(identity)
                service, _, instance = identity.partition(":")
                answer = await ask("leave", "leave", f"/services/{service}/instances/{instance}")
                if answer is not None and answer[0] == 204:
                    books.left.add(identity)

    async def mortals() -> None:
        number = 0
        while time.monotonic() < end - 2 * TTL:
            number += 1
            identity = f"mortal:{number}"
            answer = await ask("register", "register", identity, ttlSeconds=2)
            if answer is not None and answer[0] == 201:
                books.silent.add(identity)
            await asyncio.sleep(0.1)

    async def readers() -> None:
        while time.monotonic() < end:
            for node in list(nodes.values()):
                gone = set(books.left)  # before it is asked, not while it answers
                try:
                    status, _, body = await node.get(
                        "/services?view=instances&limit=10000&consistency=strong"
                    )
                except (aiohttp.ClientError, ConnectionError, TimeoutError):
                    books.answers["read: no answer"] += 1
                    continue
                books.answers[f"read: {status}"] += 1
                if status == 200:
                    held = {f"{one['name']}:{one['instanceId']}" for one in body["instances"]}
                    books.resurrected += len(held & gone)
            await asyncio.sleep(0.1)

    async def recovered(began: float) -> None:
        number = len(books.gaps)
        while True:
            answer = await ask("probe", "register", f"probe:{number}", ttlSeconds=2)
            if answer is not None and answer[0] in {200, 201}:
                books.gaps.append(time.monotonic() - began)
                return
            await asyncio.sleep(0.02)

    async def killer() -> None:
        while time.monotonic() < end - 15:
            await asyncio.sleep(rng.uniform(5, 10))
            began = time.monotonic()
            if rng.random() < 0.5:
                books.answers["kill -9 of the store"] += 1
                os.kill(owner.store_pid, signal.SIGKILL)
                await recovered(began)
            else:
                books.answers["kill -9 of a daemon"] += 1
                await nodes["second"].crash()
                await recovered(began)
                nodes["second"] = await machine.start(
                    *("--redis-url", url, "--port", ports["second"]), data="none", env=env
                )

    async with asyncio.TaskGroup() as group:
        for number in range(40):
            group.create_task(live(number))
        for chore in (mortals(), readers(), killer()):
            group.create_task(chore)
    over = set(books.alive)  # nobody renews them any more: looked at before a lease can end
    views = [set(await node.instances("&consistency=strong")) for node in nodes.values()]
    async with owner.store() as store:
        stored = set(await store.hkeys("ossa:inst"))
    lost = len(over - stored)

    async def all_ended() -> bool:
        return all([not await node.instances() for node in nodes.values()])

    began = time.monotonic()
    await until(all_ended, seconds=TTL + 5)
    rows = {
        "acknowledged": len(books.silent) + len(books.left) + len(over),
        "lost": lost,
        "resurrected": books.resurrected + len(stored & books.left),
        "wrongly expired": books.wrongly_expired,
        "no promise made": books.doubtful,
        "view 1 differs from the store in": len(views[0] ^ stored),
        "view 2 differs from the store in": len(views[1] ^ stored),
        "kills": len(books.gaps),
        "longest gap for writers, s": round(max(books.gaps, default=0), 2),
        "mean gap for writers, s": round(sum(books.gaps) / max(1, len(books.gaps)), 2),
        "all gone after the last beat, s": round(time.monotonic() - began, 2),
        **dict(sorted(books.answers.items())),
    }
    print("\n" + "\n".join(f"  {name:36} {value:>10}" for name, value in rows.items()))  # noqa: T201
    assert (lost, rows["resurrected"], books.wrongly_expired) == (0, 0, 0)
    assert not any(answer.endswith(": 500") for answer in books.answers)
    # What expired between the two looks is the only difference there may be.
    assert all(view >= stored - {i for i in stored if i.startswith("probe")} for view in views)
    assert not any("Traceback" in line for node in machine.started for line in node.lines)
