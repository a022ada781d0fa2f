"""What a person at a terminal is told."""

from registryd import __version__
from registryd.app import Daemon
from registryd.cli.serve import banner
from registryd.config import Settings


def started_on(*addresses: tuple[str, int]) -> Daemon:
    daemon = Daemon(Settings())
    daemon.addresses = list(addresses)
    daemon.store_address = "embedded valkey 9.1.2, data in /somewhere"
    return daemon


def test_the_banner_names_version_addresses_and_store() -> None:
    text = banner(started_on(("127.0.0.1", 8082), ("::1", 8083)))
    assert f"registryd {__version__}" in text
    assert "listens on   http://127.0.0.1:8082, http://[::1]:8083\n" in text
    assert "store        embedded valkey 9.1.2, data in /somewhere\n" in text


def test_the_commands_of_the_banner_use_the_first_address() -> None:
    text = banner(started_on(("::1", 9000), ("127.0.0.1", 8082)))
    commands = text[text.index("try it:") :]
    assert commands.count("http://[::1]:9000/services") == 3
    assert "8082" not in commands
    assert '"capabilities":["greeting"]' in commands, "its braces are not placeholders"


def test_every_line_of_the_banner_fits_a_terminal() -> None:
    text = banner(started_on(("127.0.0.1", 8082)))
    assert max(map(len, text.splitlines())) <= 100
