"""S1 and S4: whom the daemon calls on behalf of a client, and what the called may do to it."""

import asyncio
import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from credentials import AUDIENCE, ISSUER, claims, token
from guarded import Guarded
from processes import Machine, environment, until
from tally import Tally
from traps import Trap, redirecting, trap

pytestmark = [pytest.mark.drill, pytest.mark.timeout(0)]

Begin = Callable[[str, str], Tally]

NAMES = Path(__file__).parent / "names"
SPELLINGS = (
    "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "127.255.255.254",
    "localhost", "LOCALHOST.", "0.0.0.0", "0", "[::1]", "[::]", "[::ffff:127.0.0.1]",  # noqa: S104  dialled
)  # fmt: skip
"""Fourteen ways to say this machine."""
TRANSLATED = (
    "[::ffff:7f00:1]", "[::127.0.0.1]", "[::ffff:0:127.0.0.1]", "[64:ff9b::127.0.0.1]", "[64:ff9b::7f00:1]",
    "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "[2001:0:4136:e378:8000:63bf:80ff:fffe]",
    "[fe80::5efe:127.0.0.1]",
)  # fmt: skip
"""And through translations of IPv4: mapped, compatible, SIIT, NAT64, 6to4, Teredo, ISATAP."""
METADATA = ("169.254.169.254", "[fd00:ec2::254]", "100.100.100.200", "[::ffff:169.254.169.254]")
BOUND = (
    "n{n}.10-255-255-1.127-0-0-1.rebind.test", "n{n}.127-0-0-1.10-255-255-1.rebind.test",
    "n{n}.10-255-255-1.x--1.rebind.test", "n{n}.127-0-0-1.rebind.test", "n{n}.x--1.rebind.test",
    "n{n}.10-255-255-1.127-0-0-1.many.test", "n{n}.127-0-0-1.x--1.many.test",
    "n{n}.x0-0-0-0-0-ffff-7f00-1.rebind.test", "n{n}.169-254-169-254.rebind.test",
)  # fmt: skip
"""Names whose address is another each time they are looked up, or several at once."""
KINDS = ("http", "tcp", "grpc")
CHECK = {"intervalMs": 86_400_000, "timeoutMs": 400}


def names(machine: Machine) -> dict[str, str]:
    """The environment in which names under .test are ours."""
    return {"PYTHONPATH": f"{NAMES}:{environment(machine.home)['PYTHONPATH']}"}


async def checks(guarded: Guarded, urls: list[str]) -> list[str]:
    """Registers a service for each URL and each kind of probe, and probes it; the errors they were given.
    A URL that the registration refuses counts as one."""

    async def one(number: int, kind: str, url: str) -> str:
        name = f"s{number}-{kind}"
        body = {"name": name, "endpoint": url, "instanceId": "a"}
        said = await guarded.ask(
            "POST", "/services", body | {"healthCheck": {"type": kind, **CHECK}}, key="writer"
        )
        if said.status not in {200, 201}:
            return f"{said.status} {said.body.decode()[:200]}"
        checked = await guarded.ask("POST", f"/services/{name}/check", key="writer")
        return checked.body.decode()

    asked = [(n, kind, url) for n, url in enumerate(urls) for kind in KINDS]
    return [
        found
        for start in range(0, len(asked), 20)
        for found in await asyncio.gather(*(one(*some) for some in asked[start : start + 20]))
    ]


async def hooks(guarded: Guarded, urls: list[str]) -> int:
    """Subscribes each URL and makes an event; returns once each was tried. How many were taken."""
    for url in urls:
        await guarded.ask("POST", "/api/v1/webhooks", {"url": url, "types": ["*"]})
    await guarded.ask(
        "POST", "/services", {"name": "news", "endpoint": "http://10.0.0.1", "healthCheck": None}
    )

    async def tried() -> bool:
        found = (await guarded.ask("GET", "/api/v1/webhooks?limit=1000")).json["webhooks"]
        return all(one["status"]["failedAttempts"] or one["status"]["delivered"] for one in found)

    await until(tried, seconds=60, pause=0.3)
    return int((await guarded.ask("GET", "/api/v1/webhooks?limit=1000")).json["total"])


def urls(trap: Trap) -> list[str]:
    hosts = [
        *SPELLINGS,
        *TRANSLATED,
        *METADATA,
        *(name.format(n=n) for n in range(2) for name in BOUND),
    ]
    return [f"http://{host}:{trap.port}/" for host in hosts]


ENV = {
    "REGISTRYD_LIMITS__ENABLED": "false",
    "REGISTRYD_WEBHOOKS__TIMEOUT": "1s",
    "REGISTRYD_WEBHOOKS__RETRY_BASE": "1s",
}


async def test_s1_no_address_of_this_machine_is_reached(machine: Machine, tally: Begin) -> None:
    rows = {kind: tally("S1", f"SSRF by {kind}") for kind in ("health checks", "webhooks")}
    env = {**ENV, **names(machine)}
    async with trap() as caught:
        guarded = await Guarded.start(machine, "--host", "0.0.0.0", env=env)  # noqa: S104  so loopback is denied
        asked = urls(caught)
        for _ in range(3):  # each time a name under .rebind.test stands for another address
            said = await checks(guarded, asked)
        rows["health checks"].refused(3 * len(said))
        rows["health checks"].measured["told egress_denied"] = sum(
            "egress_denied" in s for s in said
        )
        assert rows["health checks"].measured["told egress_denied"]
        rows["health checks"].let_in = caught.reached
        taken = await hooks(guarded, asked)
        rows["webhooks"].refused(taken)
        rows["webhooks"].measured["subscriptions refused at once"] = len(asked) - taken
        rows["webhooks"].let_in = caught.reached - rows["health checks"].let_in
        for row in rows.values():
            row.crashed = len(guarded.tracebacks()) + (not guarded.alive())
        # The trap works: where loopback is allowed the very same URLs do reach it.
        other = await Guarded.start(machine, data="other", env=env)
        await checks(other, asked)
        rows["health checks"].measured["reached with loopback allowed"] = caught.reached
        before = caught.reached
        assert before >= len(SPELLINGS)
        await hooks(other, asked)
        rows["webhooks"].measured["reached with loopback allowed"] = caught.reached - before
        assert caught.reached > before
    for row in rows.values():
        row.check()


async def test_s1_no_redirect_is_followed(machine: Machine, tally: Begin) -> None:
    row = tally("S1", "redirects of services and receivers")
    async with trap() as goal:
        guarded = await Guarded.start(machine, env=ENV)
        for status in (301, 302, 303, 307, 308):
            async with trap(redirecting(f"http://127.0.0.1:{goal.port}/", status)) as first:
                await guarded.ask(
                    "POST",
                    "/services",
                    {
                        "name": f"r{status}",
                        "endpoint": f"http://127.0.0.1:{first.port}",
                        "healthCheck": CHECK,
                    },
                )
                await guarded.ask("POST", f"/services/r{status}/check")
                await hooks(guarded, [f"http://127.0.0.1:{first.port}/"])
                assert first.reached >= 2  # both got that far
                row.refused(first.reached)
        row.let_in = goal.reached
        row.crashed = len(guarded.tracebacks())
    row.check()


async def test_s1_token_keys_come_from_nowhere_else(machine: Machine, tally: Begin) -> None:
    row = tally("S1", "jwksUrl: redirects, rebinding, jku and x5u")
    async with trap() as goal, trap(redirecting(f"http://127.0.0.1:{goal.port}/jwks")) as issuer:
        jwt = {
            "REGISTRYD_AUTH__JWT__ISSUER": ISSUER,
            "REGISTRYD_AUTH__JWT__AUDIENCE": AUDIENCE,
            **names(machine),
        }
        url = f"http://127.0.0.1:{issuer.port}/jwks"
        for data, address in (
            ("redirect", url),
            ("bound", "https://169-254-169-254.rebind.test/jwks"),
            ("mapped", "https://[::ffff:169.254.169.254]/jwks"),
        ):
            env = {**jwt, "REGISTRYD_AUTH__JWT__JWKS_URL": address}
            guarded = await Guarded.start(machine, data=data, env=env, keys=())
            away = f"http://127.0.0.1:{goal.port}/jwks"
            for header in ({}, {"jku": away}, {"x5u": away}, {"kid": away}):
                text = token(claims(role="admin"), **header)
                said = await guarded.tell(
                    b"GET /services HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                    + f"Authorization: Bearer {text}\r\n\r\n".encode()
                )
                row.judge(said.status == 401, said.status, f"{data} {header}")
            if data != "redirect":
                said_why = str(guarded.daemon.said("keys of tokens not fetched, those known stay"))
                row.judge("link-local" in said_why, 200, f"{data}: {said_why}")
            row.crashed += len(guarded.tracebacks())
        assert issuer.reached  # the drill's issuer was asked
        row.let_in += goal.reached
    row.check()


BOMB = gzip.compress(b"\0" * 200_000_000, 6)


async def test_s4_what_a_checked_service_sends_is_read_in_small_part(
    machine: Machine, tally: Begin
) -> None:
    row = tally("S4", "gzip bombs and endless answers")
    endless = b"a" * 65536

    def sending(head: str, body: bytes, times: int = 1) -> Callable[..., object]:
        async def send(_head: bytes, writer: asyncio.StreamWriter) -> None:
            writer.write(head.encode())
            for _ in range(times):
                writer.write(body)
                await writer.drain()
                taken[0] += len(body)

        return send

    taken = [0]
    ok = "HTTP/1.1 200 OK\r\n"
    quotes = b"[" * 70 + b'"' + b'\\"' * 32_000
    answers = {
        "gzip 200 MB": (
            f"{ok}Content-Encoding: gzip\r\nContent-Length: {len(BOMB)}\r\n\r\n",
            BOMB,
            1,
        ),
        "chunked gzip": (
            f"{ok}Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n{len(BOMB):x}\r\n",
            BOMB + b"\r\n0\r\n\r\n",
            1,
        ),
        "endless body": (f"{ok}\r\n", endless, 16_000),
        "endless header": (f"{ok}X: ", endless, 16_000),
        "endless headers": (ok, b"X-A: 1\r\n" * 8192, 16_000),
        "endless chunk": (f"{ok}Transfer-Encoding: chunked\r\n\r\nffffffff\r\n", endless, 16_000),
        "deep JSON": (f"{ok}Content-Length: 60000\r\n\r\n", b"[" * 60_000, 1),
        "unclosed quotes": (f"{ok}Content-Length: {len(quotes)}\r\n\r\n", quotes, 1),
    }
    guarded = await Guarded.start(machine, env=ENV)
    before, slowest, biggest = guarded.resident_kib(), 0.0, 0
    loop = asyncio.get_running_loop()
    for number, (what, (head, body, times)) in enumerate(answers.items()):
        taken[0] = 0
        async with trap(sending(head, body, times)) as peer:  # type: ignore[arg-type]
            check = {
                **CHECK,
                "timeoutMs": 3000,
                "conditions": ["[BODY].status == ok", "len([BODY]) > 0"],
            }
            registered = await guarded.ask(
                "POST",
                "/services",
                {
                    "name": f"b{number}",
                    "endpoint": f"http://127.0.0.1:{peer.port}",
                    "healthCheck": check,
                },
            )
            assert registered.status == 201, registered.body
            checking = asyncio.create_task(guarded.ask("POST", f"/services/b{number}/check"))
            while not checking.done():  # meanwhile the others are served
                began = loop.time()
                good = await guarded.ask("GET", "/services?limit=1", key="reader")
                slowest = max(slowest, loop.time() - began)
                if good.status != 200:
                    row.broke(f"{what}: a reader meanwhile -> {good.status}")
                await asyncio.sleep(0.02)
            said = await checking
            assert peer.reached, what
        # What the kernel has on its way is not read by the daemon: a few MB on loopback.
        row.judge(
            taken[0] < 16_000_000 and said.status == 200, said.status, f"{what}: {taken[0]} taken"
        )
        biggest = max(biggest, taken[0])
    grown = guarded.resident_kib() - before
    row.measured |= {
        "most taken off one, KiB": biggest // 1024,
        "memory grown, MiB": round(grown / 1024, 1),
        "slowest reader meanwhile, ms": round(slowest * 1000),
    }
    assert grown < 64 * 1024
    row.crashed += len(guarded.tracebacks())
    row.check()
