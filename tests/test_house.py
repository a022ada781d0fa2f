import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text()
LOCK = (ROOT / "requirements.lock").read_text()


def tracked_texts() -> dict[str, str]:
    """The text files that git knows, or would add."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    texts: dict[str, str] = {}
    for name in filter(None, names):
        path = ROOT / name
        if not path.is_file():  # deleted, and the deletion is not yet committed
            continue
        try:
            texts[name] = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue  # an image, or another binary file
    return texts


def locked() -> dict[str, str]:
    pins = re.findall(r"^([\w.-]+)==(\S+)", LOCK, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}


def test_the_lock_holds_every_dependency_in_a_version_that_the_project_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = locked()
    for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        wanted = Requirement(text)
        version = versions.get(canonicalize_name(wanted.name), "none")
        assert wanted.specifier.contains(version, prereleases=True), f"{text}: {version}"


def test_the_lock_holds_nothing_but_pins_and_hashes() -> None:
    pin = re.compile(r"[\w.-]+==\S+( ; [^\\]+)? \\")
    digest = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")
    odd = [
        line for line in LOCK.splitlines() if not pin.fullmatch(line) and not digest.fullmatch(line)
    ]
    assert odd == []


def test_every_target_that_help_lists_exists_and_every_target_is_listed() -> None:
    help_lines = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    listed = [re.match(r"  make ([a-z-]+) +\S", line) for line in help_lines]
    phony = re.search(r"\.PHONY: ((?:.*\\\n)*.*)", MAKEFILE)
    assert phony is not None
    assert all(listed)
    names = {match[1] for match in listed if match}
    assert names == set(phony[1].replace("\\\n", " ").split())
    assert all(re.search(rf"^{name}:", MAKEFILE, re.MULTILINE) for name in names)


def test_no_file_holds_a_path_of_one_machine() -> None:
    # Put together here, so that this file does not find itself.
    roots = [f"/{top}/" for top in ("root", "work", "home/[a-z]", "Users/[A-Za-z]")]
    pattern = re.compile(rf"(?<![\w.}}*~-])(?:{'|'.join(roots)})")
    found = {
        name: match[0] for name, text in tracked_texts().items() if (match := pattern.search(text))
    }
    assert found == {}


def test_no_file_names_the_host_of_a_package_registry() -> None:
    hosts = ["pypi" + ".org", "files.python" + "hosted.org", "registry.npm" + "js.org"]
    found = {name: word for name, text in tracked_texts().items() for word in hosts if word in text}
    assert found == {}
