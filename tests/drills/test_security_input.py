"""S5, S10, S13 and S15: what a client may write, and what becomes of it."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from urllib.parse import quote

import pytest
from guarded import Guarded, request, routes
from patterns import PIECES, hostile, patterns, written_in_place
from processes import Machine
from tally import Tally
from test_every_route import path_of
from test_security_http import CALM, in_turn

pytestmark = [pytest.mark.drill, pytest.mark.timeout(0)]

Begin = Callable[[str, str], Tally]

LONG = 100_000
SLOWEST = 0.5
"""Seconds of processor time for LONG characters; a quadratic pattern takes minutes."""
USERS = (
    "(a+)+$", "(a|a)*b", "(a|aa)+$", "(.*a){25}", "(a*)*b", "([a-z]+)*x", "(.*)*", ".*.*.*.*.*x", "(?:a?){900}a{90}",
    "((a{0,30}){0,30}){0,1}", "\\p{L}*(\\p{L}*)*x", "(?i)(A+)+b", "(a{1000}){2}", "(?=a)", "(a)\\1", "[", "(" * 200,
)  # fmt: skip
GLOBS = ("*" * 63 + "x", "*e" * 31 + "x", "service:" + "*" * 50 + "z")


async def test_s5_no_pattern_takes_long(machine: Machine, tally: Begin) -> None:
    ours = tally("S5", "regular expressions of the source")
    slowest, where = 0.0, ""
    known = [*patterns(), *written_in_place()[0]]
    for used in known:
        for text in hostile(LONG):
            taken = used.seconds(text, SLOWEST)
            if taken >= SLOWEST:  # once more: the machine may have been busy
                taken = used.seconds(text, SLOWEST)
            ours.judge(taken < SLOWEST, 200, f"{used.name} with {text[:20]!r}")
            if taken > slowest:
                slowest, where = taken, used.name
    ours.measured |= {
        "patterns": len(known),
        "slowest with 100 000 characters, ms": f"{slowest * 1000:.1f} ({where})",
    }
    ours.measured["deeper"] = "make drill NAME=fuzz"
    theirs = tally("S5", "patterns and globs of users")
    guarded = await Guarded.start(machine, env=CALM)
    for number in range(50):
        body = {"name": f"{'a' * 120}{number}", "endpoint": "http://10.0.0.1", "healthCheck": None}
        assert (await guarded.ask("POST", "/services", body, key="writer")).status == 201
    longest = 0.0
    asked = [f"/services?name={quote(one)}" for one in USERS]
    asked += [f"/services?filter={quote(f'name matches {json.dumps(one)}')}" for one in USERS]
    asked += [f"/services?{field}={quote(piece * 2000, safe='')[:7000]}" for piece in PIECES
              for field in ("version", "capability", "filter", "tags")]  # fmt: skip
    for target in asked:
        began = time.perf_counter()
        said = await guarded.ask("GET", target, key="reader")
        longest = max(longest, taken := time.perf_counter() - began)
        theirs.judge(said.status in {200, 400, 404} and taken < 1, said.status, target[:80])
    # A stream that is open while events come: nobody else may have to wait for it.
    for glob in GLOBS:
        stream = asyncio.create_task(
            guarded.ask("GET", f"/events?types={quote(glob)}", key="reader")
        )
        await asyncio.sleep(0.2)
        began = time.perf_counter()
        body = {"name": "news", "endpoint": "http://10.0.0.1", "weight": len(glob)}
        said = await guarded.ask("PUT", "/services/news/instances/a", body, key="writer")
        longest = max(longest, taken := time.perf_counter() - began)
        theirs.judge(said.status in {200, 201} and taken < 1, said.status, f"events while {glob!r}")
        stream.cancel()
    theirs.measured["slowest answer, ms"] = round(longest * 1000)
    theirs.crashed += len(guarded.tracebacks())
    ours.check()
    theirs.check()


XSS = (
    "<script>alert(1)</script>", "javascript:alert(1)", "\"><img src=x onerror=alert(1)>", "'-alert(1)-'",
    "</script><script>alert(1)</script>", "\u2028alert(1)\u2029", "{{7*7}}", "<svg/onload=alert(1)>", "data:text/html,<b>",
)  # fmt: skip


async def test_s10_markup_comes_back_as_data_alone(machine: Machine, tally: Begin) -> None:
    row = tally("S10", "XSS")
    guarded = await Guarded.start(machine, env=CALM)
    for number, text in enumerate(XSS):
        body = {
            "name": f"x{number}",
            "endpoint": "http://10.0.0.1",
            "instanceId": "a",
            "healthCheck": None,
            "metadata": {"owner": text, "description": text, "free": {text: [text]}},
            "capabilities": [{"name": "c", "description": text, "parameters": {text: text}}],
        }
        said = await guarded.ask("POST", "/services", body, key="writer")
        assert said.status == 201, said.body
        for field in ("name", "zone", "version"):
            said = await guarded.ask("POST", "/services", {**body, field: text}, key="writer")
            row.judge(said.status == 422, said.status, f"{field} {text!r}")
        said = await guarded.ask("POST", "/services", {**body, "endpoint": text}, key="writer")
        row.judge(said.status == 422, said.status, f"endpoint {text!r}")
        wish = {"status": "degraded", "details": {"said": text}}
        await guarded.ask("PUT", f"/services/x{number}/instances/a/heartbeat", wish, key="writer")
        reason = {"enabled": True, "reason": text}
        await guarded.ask("PUT", f"/services/x{number}/maintenance", reason, key="writer")
    targets = [
        path_of(route).replace("chat-1", f"x{number}").replace("/instances/x0", "/instances/a")
        for route in routes()
        if route.method == "GET" and route.path not in {"/events", "/watch"}
        for number in range(len(XSS))
    ]
    targets += [f"/services?name={quote(text)}" for text in XSS] + [
        f"/{quote(text)}" for text in XSS
    ]
    targets += [
        "/services/x0/instances/a",
        "/explain?service=x0",
        "/history?service=x0",
        "/services/x0/health",
    ]
    targets += [f"/explain?service={quote(text)}" for text in XSS]
    told = 0
    for target in targets:
        said = await guarded.ask("GET", target)
        head = said.head.lower()
        kind = head.partition("content-type: ")[2].partition("\r\n")[0].partition(";")[0]
        inert = (
            kind in {"application/json", "application/problem+json", "text/plain"} or not said.body
        )
        bare = "x-content-type-options: nosniff" in head and "default-src 'none'" in head
        row.judge(inert and bare, min(said.status, 500), f"{target}: {kind}")
        told += b"<script>" in said.body
        if "json" in kind and said.body:
            json.loads(said.body)
    assert told  # the strings do come back
    row.measured |= {"answers with <script> in JSON": told, "pages": "none yet, so no browser"}
    row.crashed += len(guarded.tracebacks())
    row.check()


ODD = (
    "a\nb", "a\r\nSET x 1", 'a"b', "a'b", "a:b", "a{b}", "{a}", "a*", "?", "[a-z]", "a\\b", "a\0b", "a b", "a\tb",
    "", " ", "..", ".", "a/b", "a,b", "a;b", "a|b", "$(id)", "`id`", "%s%n", "\u202ea", "\ufeffa", "é", "\uff11", "-a",
    "_a", "a" * 129, "\u0000", "\x7f", "a\u2028b", "a=b", "a&b", "#a", "~a", "../../x", "a\ud7ff", "redis.call('FLUSHALL')",
)  # fmt: skip


async def test_s13_no_name_gets_out_of_its_key(machine: Machine, tally: Begin) -> None:
    row = tally("S13", "injection in names, tags, ids")
    guarded = await Guarded.start(machine, env=CALM)
    body = {"name": "chat", "endpoint": "http://10.0.0.1", "instanceId": "a", "healthCheck": None}
    assert (await guarded.ask("POST", "/services", body, key="writer")).status == 201
    calm = ("auth:", "meta", "audit", "history:", "webhooks")  # these go on by themselves
    async with guarded.daemon.store() as client, client.pubsub() as listener:

        async def keys() -> set[str]:
            found = {key async for key in client.scan_iter(count=1000)}
            return {key for key in found if not key.removeprefix("ossa:").startswith(calm)}

        await listener.psubscribe("*")
        await asyncio.sleep(0.5)
        before, head = await keys(), await client.xlen("ossa:stream")
        asked = []
        fields: list[tuple[str, Callable[[str], object]]] = [
            ("name", lambda text: {**body, "name": text}),
            ("instanceId", lambda text: {**body, "instanceId": text}),
            ("tag", lambda text: {**body, "metadata": {"tags": [text]}}),
            ("environment", lambda text: {**body, "metadata": {"environment": text}}),
            ("capability", lambda text: {**body, "capabilities": [text]}),
            (
                "capability's version",
                lambda t: {**body, "capabilities": [{"name": "c", "version": t}]},
            ),
            ("model", lambda text: {**body, "models": [text]}),
            ("dependsOn", lambda text: {**body, "dependsOn": [text]}),
            ("version", lambda text: {**body, "version": text}),
            ("zone", lambda text: {**body, "zone": text}),
            ("incarnation", lambda text: {**body, "incarnation": text}),
        ]
        legal = {
            ("instanceId", "a:b"), ("tag", "a:b"), ("capability", "a:b"), ("model", "a:b"), ("tag", "a/b"),
            ("capability", "a/b"), ("model", "a/b"), ("incarnation", "_a"), ("incarnation", "-a"),
            ("incarnation", "."), ("incarnation", ".."), ("incarnation", "~a"),
        }  # fmt: skip
        key = f"Authorization: Bearer {guarded.keys['writer']}"
        for field, made in fields:
            for text in ODD:
                if (field, text) not in legal:
                    data = json.dumps(made(text)).encode()
                    asked.append(
                        (f"{field} {text!r}", request("POST", "/services", key, body=data))
                    )
        for text in ODD:
            beat = json.dumps({"heartbeats": [{"name": text, "instanceId": text}]}).encode()
            asked.append((f"heartbeat {text!r}", request("PUT", "/heartbeats", key, body=beat)))
            legacy = json.dumps({"service_name": text, "service_url": "http://10.0.0.1"}).encode()
            asked.append((f"register {text!r}", request("POST", "/register", key, body=legacy)))
        said = await in_turn(guarded, [data for _, data in asked])
        for (what, _), answer in zip(asked, said, strict=True):
            row.judge(answer.status in {400, 422}, answer.status, what)
        after = await keys()
        told = []
        while (message := await listener.get_message(ignore_subscribe_messages=True)) is not None:
            told.append(str(message["channel"]))
        row.judge(after == before, 200, f"keys came or went: {after ^ before}")
        row.judge(await client.xlen("ossa:stream") == head, 200, "the stream has grown")
        row.judge(not told, 200, f"messages on {set(told)}")
    row.measured |= {"keys": len(before), "messages": len(told)}
    row.crashed += len(guarded.tracebacks())
    row.check()


async def pipelined(guarded: Guarded, requests: list[bytes]) -> Counter[int]:
    """Sends requests without waiting on ten connections; how often each status came back."""
    statuses: Counter[int] = Counter()

    async def one(mine: list[bytes]) -> None:
        reader, writer = await asyncio.open_connection(guarded.host, guarded.port, limit=2**22)
        try:
            for start in range(0, len(mine), 20):
                part = mine[start : start + 20]
                writer.write(b"".join(part))
                for _ in part:
                    head = (await reader.readuntil(b"\r\n\r\n")).lower()
                    statuses[int(head.split(b" ", 2)[1])] += 1
                    length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
                    await reader.readexactly(int(length or 0))
        except (OSError, asyncio.IncompleteReadError):
            statuses[0] += 1
        finally:
            writer.close()

    await asyncio.gather(*(one(requests[n::10]) for n in range(10)))
    return statuses


async def test_s15_no_caller_makes_series_or_indexes_without_end(
    machine: Machine, tally: Begin
) -> None:
    guarded = await Guarded.start(machine)

    def call(method: str, target: str, key: str, body: bytes = b"", *more: str) -> bytes:
        lines = [f"X-API-Key: {guarded.keys[key]}", *more]
        return request(method, target, *lines, body=body).replace(b"Connection: close\r\n", b"")

    async def series() -> tuple[int, str]:
        text = (await guarded.ask("GET", "/metrics")).body.decode()
        return sum(not line.startswith("#") for line in text.splitlines()), text

    async with guarded.daemon.store() as client:

        async def memory() -> int:
            return int((await client.info("memory"))["used_memory"])

        row = tally("S15", "1 000 000 tags")
        for at in ("/services", "/stats"):  # so that their series are there
            await guarded.ask("GET", at)
        first, _ = await series()
        held, resident = await memory(), guarded.resident_kib()
        sent, each = 1_000_000 // 64, 64

        def body(number: int) -> bytes:
            tags = [f"cardinal-{number}-{n}" for n in range(each)]
            fields = {"name": f"t{number}", "endpoint": "http://10.0.0.1", "healthCheck": None}
            return json.dumps({**fields, "metadata": {"tags": tags}}).encode()

        began = time.monotonic()
        statuses = await pipelined(
            guarded, [call("POST", "/services", "writer", body(n)) for n in range(sent)]
        )
        spent = time.monotonic() - began
        taken = statuses[201]
        # 200 a second and a burst of ten seconds' worth is what one caller may.
        row.judge(taken <= 200 * (spent + 10) + 20, 200, f"{taken} taken in {spent:.0f} s")
        row.attempts, row.crashed = sent, sum(statuses[s] for s in statuses if s == 0 or s >= 500)
        indexes = len([key async for key in client.scan_iter("ossa:index:tag:*", count=10_000)])
        row.measured |= {
            "in s": round(spent, 1),
            **{str(status): count for status, count in sorted(statuses.items())},
            "tags kept": taken * each,
            "index keys of tags": indexes,
            "store grown, MiB": round((await memory() - held) / 2**20),
            "daemon grown, MiB": round((guarded.resident_kib() - resident) / 1024),
        }
        assert indexes == taken * each
        again, text = await series()
        row.measured["series"] = f"{first} before, {again} after"
        row.judge("cardinal" not in text, 200, "a tag stands in /metrics")

        row = tally("S15", "100 000 values that might be labels")
        requests = []
        for number in range(100_000 // 5):
            requests += [
                call("GET", f"/made-up/{number}", "reader"),
                call("GET", f"/services/cardinal-{number}", "reader"),
                call("GET", "/services?limit=1", "reader", b"", f"Accept: x/y{number}"),
                call(
                    "GET",
                    f"/services?tags=cardinal-{number}",
                    "reader",
                    b"",
                    f"User-Agent: u{number}",
                ),
                call(
                    "PUT",
                    f"/services/cardinal-{number}/heartbeat",
                    "writer",
                    b"",
                    f"X-Request-ID: {number}",
                ),
            ]
        statuses = await pipelined(guarded, requests)
        # Each ends its connection, so these are fewer.
        invented = [request(f"M{number}", "/services") for number in range(1_000)]
        statuses.update(one.status for one in await in_turn(guarded, invented))
        row.attempts, row.crashed = (
            len(requests) + len(invented),
            sum(statuses[s] for s in statuses if s == 0 or s >= 500),
        )
        last, text = await series()
        row.measured |= {
            **{str(status): count for status, count in sorted(statuses.items())},
            "series": f"{again} before, {last} after",
            "daemon grown, MiB": round((guarded.resident_kib() - resident) / 1024),
        }
        row.judge(last - again < 200, 200, f"{last - again} new series")
        row.judge(
            "cardinal" not in text and "made-up" not in text, 200, "a client's word is a label"
        )
        row.crashed += len(guarded.tracebacks()) + (not guarded.alive())
    row.check()
