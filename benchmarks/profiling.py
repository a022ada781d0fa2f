"""Where the daemon's time goes under a load: py-spy looks on from outside; where that is missing the
daemon runs under cProfile, which makes it several times slower and so distorts the shares."""

import pstats
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Final

from benchmarks.servers import Server, py_spy

_RATE: Final = 400
_SHOWN: Final = 45


def profile(server: Server, slice_: Callable[[], float], seconds: float, to: Path) -> float:
    """Runs slices of load for so long while watching, writes the report, returns the mean rate."""
    to.parent.mkdir(parents=True, exist_ok=True)
    tool = py_spy()
    if tool is None:
        rate = _run(slice_, lambda began: time.monotonic() - began < seconds)
        server.stop()
        assert server.profile is not None
        text = StringIO()
        pstats.Stats(str(server.profile), stream=text).sort_stats("tottime").print_stats(_SHOWN)
        to.write_text(f"cProfile, {rate:.0f}/s\n{_without_machine_paths(text.getvalue())}")
        return rate
    raw = to.with_suffix(".raw")
    command = [
        tool, "record", "--format", "raw", "--rate", str(_RATE), "--duration", str(round(seconds)),
        "--nonblocking", "--output", str(raw), "--pid", str(server.pid),
    ]  # fmt: skip
    watcher = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    rate = _run(slice_, lambda _: watcher.poll() is None)
    said, _ = watcher.communicate(timeout=30)
    if watcher.returncode or not raw.exists():
        raise RuntimeError(f"py-spy failed: {said.decode(errors='replace')[-500:]}")
    to.write_text(
        f"py-spy at {_RATE} Hz for {seconds:.0f} s, {rate:.0f}/s\n\n{digest(raw.read_text())}"
    )
    raw.unlink()
    return rate


def _run(slice_: Callable[[], float], go_on: Callable[[float], bool]) -> float:
    began = time.monotonic()
    rates = [slice_()]
    while go_on(began):
        rates.append(slice_())
    return sum(rates) / len(rates)


def digest(folded: str) -> str:
    """py-spy's folded stacks (`a;b;c 12`) as tables: own time by function and by line, and inclusive."""
    own: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    inclusive: Counter[str] = Counter()
    total = 0
    for row in folded.splitlines():
        stack, _, count = row.rpartition(" ")
        if not stack:
            continue
        frames = [_without_machine_paths(frame) for frame in stack.split(";")]
        functions = [re.sub(r":\d+\)$", ")", frame) for frame in frames]
        samples = int(count)
        total += samples
        own[functions[-1]] += samples
        lines[frames[-1]] += samples
        for function in set(functions):
            inclusive[function] += samples
    tables = (
        ("Own time, by function", own),
        ("Own time, by line", lines),
        ("Time with what it calls, by function", inclusive),
    )
    out = [f"{total} samples"]
    for title, counts in tables:
        out += ["", title]
        out += [f"{samples / total:7.1%}  {frame}" for frame, samples in counts.most_common(_SHOWN)]
    return "\n".join(out) + "\n"


def _without_machine_paths(text: str) -> str:
    return re.sub(r"[^\s(]*/(?:site-packages|lib/python3\.\d+)/", "", text)
