"""HTTPS: what is spoken, who shows a certificate, renewed files, and clients that never get that far."""

import asyncio
import json
import os
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop
from authority import Authority
from structlog.testing import capture_logs
from wired import get, nothing, request, route, serving

from registryd.errors import StartupRefused
from registryd.web.reply import Outlet, Reply, Stream, frame
from registryd.web.tls import Certificates, TlsFiles

SHORT = 0.15

Test = Callable[[], Awaitable[None]]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Test], None]:
    """Runs a coroutine function on each of the event loops that the daemon may have."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run(test: Test) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(test())

    return run


async def who(request: Any) -> Reply:
    shown = request.peer.certificate
    subject = dict(part for [part] in shown["subject"]) if shown else None
    return Reply(body=json.dumps(subject).encode())


def test_answers_are_the_same_and_browsers_are_told_to_stay(authority: Authority, run) -> None:
    async def test() -> None:
        secure = {"tls": authority.certificates(), "client_tls": authority.client()}
        async with (
            serving([route("GET", "/who", who)], **secure) as served,
            served.line() as line,
        ):
            for _ in range(3):
                answer = await line.ask(get("/who"))
                assert (answer.status, answer.json) == (200, None)
                assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
        async with serving([route("GET", "/who", who)]) as served, served.line() as line:
            assert "Strict-Transport-Security" not in (await line.ask(get("/who"))).headers

    run(test)


def test_the_fast_lane_is_taken(authority: Authority, run) -> None:
    def short(exchange) -> bool:
        asyncio.get_running_loop().call_later(0.001, exchange.reply, Reply(204))
        return True

    async def test() -> None:
        routes = [route("PUT", "/short", shortcut=short), route("GET", "/other")]
        secure = {"tls": authority.certificates(), "client_tls": authority.client()}
        async with serving(routes, **secure) as served, served.line() as line:
            await line.ask(get("/other"))
            value = served.metrics.registry.get_sample_value
            for _ in range(5):
                assert (await line.ask(request("PUT", "/short"))).status == 204
            assert value("registryd_http_request_seconds_count", {"route": "/short"}) == 5

    run(test)


def test_a_standing_stream_is_written_to_and_ended_well(authority: Authority, run) -> None:
    outlets: list[Outlet] = []

    async def stream(request: Any) -> Stream:
        async def produce(outlet: Outlet) -> None:
            await outlet.send(b"first")
            outlets.append(outlet)

        return Stream(produce, standing=True)

    async def test() -> None:
        secure = {"tls": authority.certificates(), "client_tls": authority.client()}
        outlets.clear()
        async with serving([route("GET", "/s", stream)], **secure) as served, served.line() as line:
            await line.send(get("/s"))
            await line.head()
            first = frame(b"first")
            assert await line.reader.readexactly(len(first)) == first
            [outlet] = outlets
            many = [frame(b"%06d" % number * 1000) for number in range(50)]
            for chunk in many:
                assert outlet.offer(chunk, 1_000_000)
            outlet.end()
            assert await line.rest() == b"".join(many) + b"0\r\n\r\n"

    run(test)


@pytest.mark.parametrize(
    ("asked", "shows", "let_in"),
    [
        ("optional", True, True),
        ("optional", False, True),
        ("required", True, True),
        ("required", False, False),
    ],
)
def test_clients_certificates(
    authority: Authority, run, asked: Any, shows: bool, let_in: bool
) -> None:
    files = replace(authority.issue("server"), client_ca=authority.ca, client_certificates=asked)
    shown = authority.issue("client", "svc.example", common_name="svc") if shows else None

    async def test() -> None:
        tls = Certificates(files)
        async with (
            serving([route("GET", "/who", who)], tls=tls) as served,
            served.line(authority.client(shown)) as line,
        ):
            if not let_in:
                with pytest.raises((OSError, asyncio.IncompleteReadError)):
                    await line.ask(get("/who"))
                return
            subject = (await line.ask(get("/who"))).json
            assert (subject["commonName"] if subject else None) == ("svc" if shows else None)

    run(test)


def test_a_certificate_of_another_authority_is_refused(
    authority: Authority, run, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other").issue("client", "svc.example")
    files = replace(
        authority.issue("server"), client_ca=authority.ca, client_certificates="optional"
    )

    async def test() -> None:
        async with serving([route("GET", "/who", who)], tls=Certificates(files)) as served:
            with pytest.raises((OSError, asyncio.IncompleteReadError)):
                async with served.line(authority.client(stranger)) as line:
                    await line.ask(get("/who"))

    run(test)


def test_the_oldest_version_is_the_one_set(authority: Authority, run) -> None:
    files = replace(authority.issue("server"), min_version="1.3")
    old = authority.client()
    old.maximum_version = ssl.TLSVersion.TLSv1_2

    async def test() -> None:
        async with serving([route("GET", "/a")], tls=Certificates(files)) as served:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                async with served.line(old):
                    pass
            async with served.line(authority.client()) as line:
                assert (await line.ask(get("/a"))).status == 204

    run(test)


def test_a_handshake_that_does_not_end_is_closed_in_time(authority: Authority, run) -> None:
    async def test() -> None:
        tls = authority.certificates()
        async with serving([route("GET", "/a")], tls=tls, head_timeout=SHORT) as served:
            for sent in (b"", b"\x16\x03\x01\x02\x00\x01", b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"):
                reader, writer = await asyncio.open_connection(*served.address)
                writer.write(sent)
                try:
                    async with asyncio.timeout(2):
                        await reader.read()
                except ConnectionError:
                    pass  # closed with our bytes unread
                writer.close()
            async with served.line(authority.client()) as line:
                assert (await line.ask(get("/a"))).status == 204

    run(test)


def test_a_silent_handshake_does_not_hold_up_stopping(authority: Authority, run) -> None:
    async def test() -> None:
        async with serving([route("GET", "/a")], tls=authority.certificates()) as served:
            reader, writer = await asyncio.open_connection(*served.address)
            await asyncio.sleep(0.02)
            async with asyncio.timeout(2):
                await served.server.stop(60)
                assert await reader.read() == b""
            writer.close()

    run(test)


# --- files


def serial(tls: Certificates, authority: Authority) -> Callable[[Any], Awaitable[str]]:
    async def of(served: Any) -> str:
        async with served.line(authority.client()) as line:
            return str(line.writer.get_extra_info("peercert")["serialNumber"])

    return of


async def test_renewed_files_are_taken_over_for_new_connections(authority: Authority) -> None:
    tls = authority.certificates()
    shown = serial(tls, authority)
    async with serving([route("GET", "/a", nothing)], tls=tls) as served:
        first = await shown(served)
        async with served.line(authority.client()) as line:
            await tls.look()
            assert await shown(served) == first
            authority.issue("server")
            await tls.look()
            assert await shown(served) != first
            assert (await line.ask(get("/a"))).status == 204


async def test_new_files_that_do_not_fit_leave_the_old_ones_in_use(authority: Authority) -> None:
    files = authority.issue("server")
    tls = Certificates(files)
    shown = serial(tls, authority)
    async with serving([route("GET", "/a", nothing)], tls=tls) as served:
        first = await shown(served)
        old_key = files.key.read_bytes()
        authority.issue("server")
        new_key = files.key.read_bytes()
        files.key.write_bytes(old_key)
        with capture_logs() as logs:
            await tls.look()
            await tls.look()
        assert [entry["event"] for entry in logs] == [
            "new certificate not usable, the one in use stays"
        ]
        assert await shown(served) == first
        files.certificate.unlink()
        await tls.look()
        assert await shown(served) == first
        authority.issue("server")
        assert new_key != files.key.read_bytes()
        await tls.look()
        assert await shown(served) != first


async def test_a_swapped_link_is_a_change(authority: Authority, tmp_path: Path) -> None:
    first, second = authority.issue("first"), authority.issue("second")
    links = TlsFiles(tmp_path / "tls.pem", tmp_path / "tls.key")
    for link, file in ((links.certificate, first.certificate), (links.key, first.key)):
        link.symlink_to(file)
    tls = Certificates(links)
    before = tls.context
    for link, file in ((links.certificate, second.certificate), (links.key, second.key)):
        other = tmp_path / "other"
        other.symlink_to(file)
        os.replace(other, link)
    await tls.look()
    assert tls.context is not before


@pytest.mark.parametrize("spoilt", ["missing", "empty", "other key", "passphrase"])
def test_files_that_cannot_be_used_refuse_the_start(authority: Authority, spoilt: str) -> None:
    files = authority.issue("server")
    match spoilt:
        case "missing":
            files.certificate.unlink()
        case "empty":
            files.certificate.write_text("")
        case "other key":
            files = replace(files, key=authority.issue("other").key)
        case _:
            from cryptography.hazmat.primitives import serialization

            key = serialization.load_pem_private_key(files.key.read_bytes(), None)
            files.key.write_bytes(
                key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.BestAvailableEncryption(b"secret"),
                )
            )
    with pytest.raises(StartupRefused, match=r"server\.tls cannot be used .*server\.pem"):
        Certificates(files)


def test_a_key_may_stand_in_the_certificate_s_file(authority: Authority) -> None:
    files = authority.issue("server")
    files.certificate.write_bytes(files.certificate.read_bytes() + files.key.read_bytes())
    assert Certificates(TlsFiles(files.certificate)).context
