"""What docs/architecture.md claims about the code as a whole."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "registryd").rglob("*.py"))
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "docs/architecture.md"]


def test_broad_exceptions_are_caught_in_two_places_only() -> None:
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and (
                node.type is None
                or (isinstance(node.type, ast.Name) and node.type.id == "Exception")
            ):
                found.add(path.relative_to(ROOT / "registryd").as_posix())
    assert found == {"kit/tasks.py", "web/pipeline.py"}


def test_every_module_says_what_it_is_for() -> None:
    silent = [path.name for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_every_script_says_what_it_takes_and_returns() -> None:
    for path in (ROOT / "registryd").glob("*/lua/*.lua"):
        header = path.read_text().split("\n\n")[0].splitlines()
        comment = "\n".join(line for line in header if line.startswith("--"))
        assert "ARGV" in comment, path.name
        assert path.name == "lib.lua" or "Returns" in path.read_text()[:2000], path.name


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_that_a_document_names_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    named = re.findall(
        r"`((?:registryd|tests|docs|benchmarks|deploy)/[\w./-]*|[\w-]+\.(?:md|yaml|toml))`", text
    )
    named += re.findall(r"\]\(([\w./-]+)\)", text)
    missing = [name for name in named if not (ROOT / name).exists()]
    assert missing == []
