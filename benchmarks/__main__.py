"""`python -m benchmarks [ROW…]`: measures, prints the table, writes RESULTS.md."""

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from benchmarks import report
from benchmarks.bench import Bench, Figure, Options, Profiled
from benchmarks.load import LoadFailed
from benchmarks.rows import ROWS, Row
from benchmarks.servers import Absent, Fleet, move

_HERE = Path(__file__).resolve().parent


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="make bench",
        description="Measures registryd against a bare handler and its peers, in alternating slices.",
        epilog="Rows: " + "; ".join(f"{row.name} {row.title}" for row in ROWS),
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="which rows; all without")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a slice (whole ones)")
    parser.add_argument("--rounds", type=int, default=11, help="rounds of slices; 11 or more count")
    parser.add_argument("--quick", action="store_true", help="3 rounds, and write nothing")
    parser.add_argument(
        "--profile",
        action="store_true",
        help="profile the daemon under the load of the rows into benchmarks/profiles/ROW.txt "
        "instead of measuring",
    )
    given = parser.parse_args(arguments)
    known = {row.name: row for row in ROWS}
    wanted = [name.upper() for name in given.rows] or list(known)
    if unknown := [name for name in wanted if name not in known]:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(known)}")
    if shutil.which("wrk") is None:
        say("wrk is not installed: loading with a slower client in Python")
    # So that the servers are stopped in order when the harness is told to end.
    signal.signal(signal.SIGTERM, _interrupted)
    options = Options(3 if given.quick else given.rounds, given.seconds, given.quick)
    rows = [known[name] for name in wanted]
    return _profile(rows, options) if given.profile else _measure(rows, options)


def _measure(rows: Sequence[Row], options: Options) -> int:
    figures: list[Figure] = []
    failed = False
    with Fleet(say) as fleet:
        layout = str(fleet.cpus) + ("" if shutil.which("wrk") else "; load by a client in Python")
        for row in rows:
            began = time.monotonic()
            say(f"{row.name}: {row.title}")
            bench = Bench(options, fleet, _prefixed(row.name))
            try:
                measured = row.measure(bench)
            except (Absent, LoadFailed, RuntimeError, OSError) as error:
                failed = True
                measured = [Figure(row.name, row.title, None, remark=_one_line(error))]
            figures += measured
            say(f"{row.name}: done in {time.monotonic() - began:.0f} s")
    print(report.terminal(figures))
    if not options.quick:
        order = [row.name for row in ROWS]
        report.write(_HERE / "RESULTS.md", figures, options, order, layout)
    return 1 if failed else 0


def _profile(rows: Sequence[Row], options: Options) -> int:
    for row in rows:
        to = _HERE / "profiles" / f"{row.name}.txt"
        watched = Options(options.rounds, options.seconds, options.quick, to)
        with Fleet(say, profiled=True) as fleet:
            # The watcher needs some CPU too: the harness and what it starts stay off the server's.
            move(os.getpid(), fleet.cpus.load)
            try:
                row.measure(Bench(watched, fleet, _prefixed(row.name)))
            except Profiled:
                print(to.read_text())
            except (Absent, LoadFailed, RuntimeError) as error:
                say(f"{row.name}: {error}")
                return 1
            else:
                say(f"{row.name} has no load to profile under")
    return 0


def _prefixed(name: str) -> Callable[[str], None]:
    return lambda text: say(f"  {name}: {text}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).replace("|", "/")[:200]


def _interrupted(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def say(text: str) -> None:
    """Progress, apart from the table."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
