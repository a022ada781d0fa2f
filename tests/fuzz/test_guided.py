"""Long fuzzing: `make drill NAME=fuzz`. REGISTRYD_DRILL_SECONDS is shared by all parsers; 300 if not set.

Each parser is fuzzed by atheris, led by coverage, in a process of its own.
"""

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest
from parsers import PARSERS

pytestmark = [pytest.mark.drill, pytest.mark.timeout(0)]

HERE = Path(__file__).parent
SECONDS = float(os.environ.get("REGISTRYD_DRILL_SECONDS", "300"))
_FIGURES = re.compile(r"Done (\d+) runs in (\d+) second")
_COVERED = re.compile(r"cov: (\d+)")


def _artifacts(directory: Path) -> dict[str, bytes]:
    """The inputs that libFuzzer kept, such as `crash-…`, by name."""
    return {path.name: path.read_bytes() for path in directory.glob("*-*") if path.is_file()}


@pytest.mark.parametrize("name", PARSERS)
async def test_fuzzing_a_parser_led_by_coverage(name: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="needs atheris: the extra `fuzz`")
    parser = PARSERS[name]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(parser.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = ("".join(f"\\x{byte:02x}" for byte in word) for word in parser.words)
    (tmp_path / "words").write_text("".join(f'"{word}"\n' for word in words))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(HERE / "guided.py"), name),
        f"-max_total_time={max(1, round(SECONDS / len(PARSERS)))}",
        *(f"-dict={tmp_path / 'words'}", "-max_len=4096", "-timeout=20", "-seed=1"),
        *(f"-artifact_prefix={tmp_path}/", str(corpus)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    told = out.decode(errors="replace")
    assert process.returncode == 0, f"{_artifacts(tmp_path)}\n{told[-4000:]}"
    done = _FIGURES.search(told)
    assert done is not None, told[-4000:]
    covered = max(map(int, _COVERED.findall(told)), default=0)
    print(f"\n  {name:20} {done[1]:>9} runs {covered:>6} branches reached")  # noqa: T201
    assert int(done[1]) > 0
    assert covered > 0
