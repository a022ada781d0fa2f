"""What the settings of access make of a daemon."""

from pathlib import Path
from typing import Any

import pytest
from credentials import AUDIENCE, ISSUER, claims, jwk, jwks, pem, rsa_key, token
from daemons import running
from peers import answer, answering

from registryd.errors import StartupRefused
from registryd.storage.connection import Connection

ISSUED = {"issuer": ISSUER, "audience": AUDIENCE}
SECRET = "s" * 32


async def status(store_url: str, folder: Path, headers: dict[str, str], **auth: Any) -> list[int]:
    """What a reader's and a writer's request are answered with."""
    sections = {"mode": "required", **auth}
    async with running(store_url, "settings", folder, auth=sections) as api:
        read = await api("GET", "/services", headers=headers)
        write = await api("DELETE", "/services/nobody", headers=headers)
        return [read.status, write.status]


async def test_anonymous_callers_from_a_named_network_have_its_role(
    connection: Connection, store_url: str, tmp_path: Path
) -> None:
    for cidr, expected in (("127.0.0.0/8", [200, 403]), ("10.0.0.0/8", [401, 401])):
        found = await status(store_url, tmp_path, {}, anonymous={"role": "reader", "cidrs": [cidr]})
        assert found == expected


async def test_the_keys_file_lets_its_keys_in(
    connection: Connection, store_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text("- {id: consul, role: writer, key: 0123456789abcdef}")
    headers = {"X-API-Key": "0123456789abcdef"}
    assert await status(store_url, tmp_path, headers, keysFile=file) == [200, 404]


@pytest.mark.parametrize("place", ["jwksUrl", "publicKeyFile", "secret"])
async def test_tokens_are_verified_with_keys_from_each_place(
    connection: Connection, store_url: str, tmp_path: Path, place: str
) -> None:
    file = tmp_path / "key.pem"
    file.write_text(pem(rsa_key()))
    async with answering(answer(jwks(jwk(rsa_key(), kid="one")).encode())) as peer:
        value = {
            "jwksUrl": f"http://{peer.authority}/keys", "publicKeyFile": file, "secret": SECRET,
        }[place]  # fmt: skip
        algorithm, key = ("HS256", SECRET) if place == "secret" else ("RS256", rsa_key())
        headers = {"Authorization": f"Bearer {token(claims(), key, algorithm)}"}
        rules = {place: value, "algorithms": [algorithm], **ISSUED}
        assert await status(store_url, tmp_path, headers, jwt=rules) == [200, 404]


@pytest.mark.parametrize(
    "auth",
    [
        {"certificates": [{"subject": "nonsense", "role": "reader"}]},
        {"certificates": [{"san": "nonsense", "role": "reader"}]},
        {"certificates": [{"subject": "CN=a", "role": "reader", "prefixes": ["*"]}]},
        {"keysFile": "missing.yaml"},
        {"jwt": {"jwksFile": "missing.json", **ISSUED}},
    ],
)
async def test_a_start_with_settings_that_mean_nothing_is_refused(
    connection: Connection, store_url: str, tmp_path: Path, auth: dict[str, Any]
) -> None:
    with pytest.raises(StartupRefused, match=r"auth\.certificates|missing"):
        await status(store_url, tmp_path, {}, **auth)


async def test_a_daemon_that_nobody_can_enter_says_how_to_make_a_key(
    connection: Connection, store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await status(store_url, tmp_path, {}) == [401, 401]
    assert "registryd keys create --role admin" in capsys.readouterr().out
