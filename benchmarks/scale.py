"""Three daemons and 100 000 instances for ten minutes: start, memory, queries, heartbeats, wrong expiries.

`python -m benchmarks.scale` (`make bench-scale`): registers, restarts, adds a second and a third process
on the same port, lets every instance send a heartbeat every 10 s through batches of 100 (an agent for
each host), asks five queries all the while, and counts what expired. Writes its part of RESULTS.md.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from benchmarks import data, report
from benchmarks.client import Asker, send_all
from benchmarks.servers import Fleet, Server, cpu_seconds, free_port, resident_bytes

BEGIN: Final = "<!-- scale:begin -->"
END: Final = "<!-- scale:end -->"

BEAT_EVERY: Final = 10.0
TTL_SECONDS: Final = 30
BATCH: Final = 100
CONNECTIONS: Final = 16

QUERIES: Final = {
    "one capability and one tag, 100 shown": data.FILTERED % (3, 4, 101),
    "one capability, 1000 shown": data.BROAD % 7,
    "healthy ones of one zone, first page": "/services?health=healthy&zone=zone-1&view=instances",
    "a service": f"/services/{data.service_of(5)}",
    "the URL of one instance": f"/services/{data.service_of(9)}/url",
}


@dataclass
class Seen:
    """What the ten minutes showed; times in seconds."""

    beats: list[float] = field(default_factory=list)
    late: float = 0.0
    queries: dict[str, list[float]] = field(default_factory=dict)
    refused: int = 0


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> tuple[int, bytes]:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
    return int(head[9:12]), await reader.readexactly(length)


async def _beat(
    port: int, batches: Sequence[bytes], until: float, offset: float, seen: Seen
) -> None:
    """One connection: its batches spread evenly over every ten seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.monotonic() + offset
    number = 0
    while (due := began + number * BEAT_EVERY / len(batches)) < until:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        sent = time.monotonic()
        seen.late = max(seen.late, sent - due)
        status, body = await _ask(reader, writer, batches[number % len(batches)])
        seen.beats.append(time.monotonic() - sent)
        if status != 200 or body.count(b'"renewed"') != BATCH:
            seen.refused += 1
        number += 1
    writer.close()


async def _query(port: int, until: float, seen: Seen) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.monotonic() < until:
        for what, target in QUERIES.items():
            sent = time.monotonic()
            status, _ = await _ask(reader, writer, data.request("GET", target).encode())
            seen.queries.setdefault(what, []).append(time.monotonic() - sent)
            seen.refused += status != 200
            await asyncio.sleep(0.05)
    writer.close()


async def _live(ports: Sequence[int], batches: Sequence[bytes], seconds: float) -> Seen:
    seen = Seen()
    until = time.monotonic() + seconds
    shares = [batches[each::CONNECTIONS] for each in range(CONNECTIONS)]
    await asyncio.gather(
        *(
            _beat(ports[each % len(ports)], share, until, each * 0.6 / CONNECTIONS, seen)
            for each, share in enumerate(shares)
        ),
        _query(ports[0], until, seen),
    )
    return seen


def _registrations(count: int) -> list[bytes]:
    made = []
    for number in range(count):
        body = data.document(number) | {"ttlSeconds": TTL_SECONDS}
        made.append(data.request("POST", "/services", data.encode(body)).encode())
    return made


def _batches(count: int) -> list[bytes]:
    made = []
    for start in range(0, count, BATCH):
        beats = [
            {"name": data.service_of(n), "instanceId": data.instance_id_of(n)}
            for n in range(start, start + BATCH)
        ]
        made.append(data.request("PUT", "/heartbeats", data.encode({"heartbeats": beats})).encode())
    return made


def _ready(server: Server, count: int) -> float:
    """Seconds until it shows all of them."""
    began = time.monotonic()
    while time.monotonic() - began < 120:
        try:
            status, _, body = Asker(server.port).ask("GET", "/stats")
        except OSError:
            status, body = 0, b""
        if status == 200 and json.loads(body)["totalInstances"] == count:
            return time.monotonic() - began
        time.sleep(0.02)
    raise RuntimeError(f"{count} instances were not shown within two minutes")


def _expired(servers: Sequence[Server]) -> float:
    """Instances that any of them expired, and the guard held."""
    total = 0.0
    for server in servers:
        counters = server.counters()
        total += counters.get("registryd_expired_total", 0.0)
        total += counters.get("registryd_expiry_guard_held", 0.0)
    return total


def _percentiles(times: Sequence[float]) -> str:
    cut = statistics.quantiles(times, n=100)
    return f"{cut[49] * 1000:.2f} / {cut[98] * 1000:.2f} ms"


def run(
    fleet: Fleet, count: int, seconds: float, say: Callable[[str], None]
) -> list[tuple[str, str]]:
    """The lines of the table: what, figure."""
    lines: list[tuple[str, str]] = []

    def told(what: str, figure: str) -> None:
        say(f"{what}: {figure}")
        lines.append((what, figure))

    say(f"registering {count} instances")
    taking = fleet.new_daemon(settings={"REGISTRYD_REGISTRY__GUARD__MAX_HOLD": "300s"})
    empty = resident_bytes(taking.pid)
    began = time.monotonic()
    # In pieces, each followed by its heartbeats: the leases are shorter than the whole takes.
    requests, batches = _registrations(count), _batches(count)
    piece = 5_000
    for start in range(0, count, piece):
        send_all(taking.port, requests[start : start + piece])
        send_all(taking.port, batches[: (start + piece) // BATCH], connections=4)
    told("registering them all, with heartbeats in between", f"{time.monotonic() - began:.0f} s")
    told(
        "memory of the daemon that took them",
        f"{resident_bytes(taking.pid) >> 20} MB ({(resident_bytes(taking.pid) - empty) // count} B each)",
    )
    told("memory of the store", f"{resident_bytes(taking.store_pid) >> 20} MB")

    def beat_all() -> None:
        # Leases are shorter than what goes before the ten minutes.
        send_all(taking.port, batches, connections=4)

    beat_all()
    began = time.monotonic()
    second = fleet.new_daemon(store_of=taking)
    loaded = time.monotonic() - began + _ready(second, count)
    told("another daemon, from its start until it shows them all", f"{loaded:.1f} s")
    told("its memory", f"{resident_bytes(second.pid) >> 20} MB")
    second.stop()

    port, sharing = free_port(), []
    for _ in range(2):
        beat_all()
        sharing.append(
            fleet.new_daemon(store_of=taking, port=port, reuse_port=True, cpus=fleet.cpus.both)
        )
        _ready(sharing[-1], count)
    beat_all()
    if _expired([taking]):
        raise RuntimeError("leases ended before the ten minutes began: this machine is too slow")
    daemons = [taking, *sharing]
    before = [cpu_seconds(one.pid) for one in daemons]
    store_before = cpu_seconds(taking.store_pid)
    say(f"heartbeats of all every {BEAT_EVERY:.0f} s, for {seconds:.0f} s")
    seen = asyncio.run(_live([taking.port, port], batches, seconds))
    used = [cpu_seconds(one.pid) - each for one, each in zip(daemons, before, strict=True)]
    told(
        f"heartbeats in {seconds:.0f} s (batches of {BATCH})",
        f"{len(seen.beats) * BATCH} ({len(seen.beats) * BATCH / seconds:.0f}/s), "
        f"p50 / p99 of a batch {_percentiles(seen.beats)}",
    )
    told("CPU of the three daemons", " · ".join(f"{each / seconds:.1%}" for each in used))
    told(
        "CPU of the store (AOF everysec)",
        f"{(cpu_seconds(taking.store_pid) - store_before) / seconds:.1%}",
    )
    for what, times in seen.queries.items():
        told(f"{what}: p50 / p99", _percentiles(times))
    told("answers other than expected", str(seen.refused))
    # Leases end 30 s after the last heartbeat, and not one may have ended before.
    told("wrong expiries", f"{_expired(daemons):.0f}")
    told("instances that all three still show", str(min(_count(one) for one in daemons)))
    if seen.refused or _expired(daemons) or min(_count(one) for one in daemons) != count:
        raise RuntimeError("something was lost: see above")
    return lines


def _count(server: Server) -> int:
    return int(server.fresh_asker().json("GET", "/stats")["totalInstances"])


def _write(path: Path, lines: Sequence[tuple[str, str]], layout: str, command: str) -> None:
    text = path.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    when = f"{datetime.now(UTC):%Y-%m-%d}"
    body = [
        BEGIN,
        "",
        "## 100 000 instances",
        "",
        f"`{command}`, {when}. {layout}.",
        "",
        "| what | figure |",
        "|---|---|",
        *[f"| {what} | {figure} |" for what, figure in lines],
        "",
        END,
    ]
    path.write_text(f"{before.rstrip()}\n\n" + "\n".join(body) + (after or "\n"))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="make bench-scale", description=__doc__)
    parser.add_argument("--instances", type=int, default=100_000, help="a multiple of 5000")
    parser.add_argument("--minutes", type=float, default=10.0)
    given = parser.parse_args(arguments)

    def say(text: str) -> None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    with Fleet(say) as fleet:
        layout = "; ".join(report.machine(str(fleet.cpus)))
        lines = run(fleet, given.instances, given.minutes * 60, say)
    if given.instances == 100_000 and given.minutes >= 10:
        here = Path(__file__).resolve().parent
        _write(here / "RESULTS.md", lines, layout, "make bench-scale")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
