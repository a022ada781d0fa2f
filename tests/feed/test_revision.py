import pytest

from registryd.errors import Malformed
from registryd.feed.revision import NOWHERE, Revision, parse_revision


@pytest.mark.parametrize("revision", [NOWHERE, Revision(1_700_000_000_000, 42)])
def test_a_revision_reads_back_from_its_text(revision: Revision) -> None:
    assert parse_revision(str(revision)) == revision


def test_a_later_epoch_is_later_whatever_its_revs() -> None:
    assert Revision(2, 0) > Revision(1, 10**12)
    assert Revision(1, 10) > Revision(1, 9)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "1-",
        "-1",
        "1",
        "1-2-3",
        "1-2 ",
        " 1-2",
        "+1-2",
        "1--2",
        "१-2",
        "1-²",
        "9" * 40 + "-1",
    ],
)
def test_anything_else_is_malformed_and_the_parameter_is_named(text: str) -> None:
    with pytest.raises(Malformed, match=r"^since: "):
        parse_revision(text, what="since")
