"""A store behind TLS, with and without certificates of ours. Skipped where no Redis can speak it."""

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from authority import Authority

from registryd.errors import StartupRefused, StorageUnavailable
from registryd.metrics import Metrics
from registryd.storage.connection import Connection, Trust

SERVER = shutil.which("redis-server") or shutil.which("valkey-server")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
async def port(authority: Authority) -> AsyncIterator[int]:
    """Where a Redis listens that asks its clients for certificates."""
    if SERVER is None:
        pytest.skip("no redis-server here; the embedded store speaks no TLS")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    files = authority.issue("store", "localhost")
    process = await asyncio.create_subprocess_exec(
        *(SERVER, "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1"),
        *("--tls-cert-file", str(files.certificate), "--tls-key-file", str(files.key)),
        *("--tls-ca-cert-file", str(authority.ca), "--save", "", "--appendonly", "no"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async for line in process.stdout:
            if b"Ready to accept connections" in line:
                break
        else:
            pytest.skip("this redis-server is built without TLS")
        yield port
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def echo(port: int, trust: Trust, *, host: str = "localhost") -> None:
    connection = Connection(f"rediss://{host}:{port}", Metrics(), tls=trust)
    try:
        for call in (connection.call, connection.script_call, connection.blocking_call):
            assert await call("ECHO", "hello") == b"hello"
    finally:
        await connection.close()


async def test_all_clients_speak_tls_and_show_our_certificate(
    port: int, authority: Authority
) -> None:
    ours = authority.issue("ours", "registryd")
    trust = Trust(authority.ca, ours.certificate, ours.key)
    await echo(port, trust)
    with pytest.raises(StorageUnavailable):
        await echo(port, replace(trust, certificate=None, key=None))
    with pytest.raises(StorageUnavailable):
        await echo(port, replace(trust, ca=None))


async def test_the_store_s_certificate_has_to_be_for_its_host(
    port: int, authority: Authority
) -> None:
    ours = authority.issue("ours", "registryd")
    trust = Trust(authority.ca, ours.certificate, ours.key)
    with pytest.raises(StorageUnavailable):
        await echo(port, trust, host="127.0.0.1")
    await echo(port, replace(trust, check_hostname=False), host="127.0.0.1")


@pytest.mark.parametrize("name", ["ca", "certificate", "key"])
def test_a_file_that_is_missing_refuses_the_start(tmp_path: Path, name: str) -> None:
    trust = replace(Trust(), **{name: tmp_path / "none.pem"})
    with pytest.raises(StartupRefused, match=r"redis\.tls: there is no file .*none\.pem"):
        Connection("rediss://localhost", Metrics(), tls=trust)
