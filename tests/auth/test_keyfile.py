"""The file of API keys: what it may hold, and how it is followed."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from credentials import MovedClock

from registryd.auth import apikey, keyfile
from registryd.auth.watched import WatchedFile
from registryd.errors import StartupRefused
from registryd.web.caller import Permission

SHA = "ab" * 32
ROW = f"- {{id: ci, role: writer, sha256: '{SHA}'}}"


def test_rows_are_read_from_yaml_and_from_json() -> None:
    text, _ = apikey.make(Permission.READER, (), name="", now=MovedClock().now(), expires_at=None)
    yaml = f"""
- id: ci
  role: writer
  sha256: "{SHA}"
  prefixes: [team-a-]
  expires: 2030-01-31T12:00:00Z
- {{id: consul, role: reader, key: 0b8a5b5a-0000-token}}
- {{id: ours, role: admin, key: {text}}}
"""
    ci, consul, ours = keyfile.read(yaml)
    assert (ci.digest.hex(), ci.role, ci.prefixes) == (SHA, Permission.WRITER, ("team-a-",))
    assert ci.expires_at == datetime(2030, 1, 31, 12, tzinfo=UTC)
    assert consul.digest == apikey.digest("0b8a5b5a-0000-token")
    assert ours.role is Permission.ADMIN
    assert keyfile.read(f'[{{"id": "ci", "role": "writer", "sha256": "{SHA}"}}]')[0].id == "ci"
    assert keyfile.read("# nobody\n") == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not YAML"),
        ("id: ci", "has to be a list"),
        ("- ci", "row 1: has to hold"),
        (f"{ROW}\n{ROW}", "row 2: the id ci stands there twice"),
        ("- {id: ci, role: writer}", "either sha256 or key"),
        (f"- {{id: ci, role: root, sha256: '{SHA}'}}", "role: has to be one of reader, writer"),
        (f"- {{id: ci, role: [writer], sha256: '{SHA}'}}", "role: has to be one of"),
        (f"- {{id: 'a b', role: writer, sha256: '{SHA}'}}", "id: has to be"),
        ("- {id: ci, role: writer, sha256: abc}", "64 hexadecimal digits"),
        ("- {id: ci, role: writer, key: hunter2}", "too short"),
        ("- {id: ci, role: writer, key: 'hunter2 hunter2 hunter2'}", "visible ASCII"),
        ("- {id: ci, role: writer, key: rgd_hunter2hunter2hunter2}", "cannot be right"),
        (f"- {{id: ci, role: writer, sha256: '{SHA}', prefix: a}}", "unknown field 'prefix'"),
        (f"- {{id: ci, role: writer, sha256: '{SHA}', prefixes: a}}", "prefixes has to be a list"),
        (f"- {{id: ci, role: writer, sha256: '{SHA}', prefixes: ['a*']}}", "without *"),
        (f"- {{id: ci, role: writer, sha256: '{SHA}', expires: soon}}", "expires: has to be"),
    ],
)
def test_a_wrong_file_is_told_by_its_row_and_quotes_no_key(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=r"\S") as caught:
        keyfile.read(text)
    assert problem in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_changed_file_is_read_again_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(ROW)
    file = WatchedFile(path, keyfile.read)
    assert [key.id for key in file.first()] == ["ci"]
    assert file.news() is None
    replaced = tmp_path / "new"
    replaced.write_text(ROW.replace("ci", "cd"))
    os.replace(replaced, path)
    assert [key.id for key in file.news() or ()] == ["cd"]
    path.write_text("{")
    assert file.news() is None
    path.unlink()
    assert file.news() is None
    path.write_text(ROW)
    assert [key.id for key in file.news() or ()] == ["ci"]


@pytest.mark.parametrize("content", [None, b"{", b"\xff"])
def test_a_start_with_a_file_that_cannot_be_read_is_refused(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "keys.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StartupRefused, match=r"keys\.yaml"):
        WatchedFile(path, keyfile.read).first()
