"""What every notifier keeps to, whatever the receiver does: a verdict in time, in one clean sentence."""

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
import trustme
from receivers import Receiver, receiving

from registryd.events.webhooks import Policy, judge, message_id
from registryd.kit.clock import SystemClock
from registryd.kit.outbound import EgressPolicy, Outbound
from registryd.notify.signing import new_secret
from registryd.notify.table import notifiers
from registryd.notify.types import Notice, Notifier, Receipt, Target

KINDS = ["webhook"]
SECRET = new_secret()
BODY = b'{"specversion":"1.0","id":"1-1","type":"a:b"}'
NOTICE = Notice(id=message_id("1-1", "wh_1"), type="a:b", body=BODY)
TIMEOUT = timedelta(milliseconds=400)


def target(url: str) -> Target:
    return Target(url=url, secrets=(SECRET,), timeout=TIMEOUT)


@pytest.fixture
async def outbound() -> AsyncIterator[Outbound]:
    outbound = Outbound(EgressPolicy(loopback=True))
    yield outbound
    await outbound.close()


@pytest.fixture(params=KINDS)
def notifier(request: pytest.FixtureRequest, outbound: Outbound) -> Notifier:
    return notifiers(outbound, SystemClock())[request.param]


def test_every_kind_of_the_table_is_tested(outbound: Outbound) -> None:
    assert sorted(notifiers(outbound, SystemClock())) == sorted(KINDS)


def clean(receipt: Receipt) -> str:
    """The error, after looking at it as the contract demands."""
    assert receipt.error
    assert "\n" not in receipt.error
    assert SECRET.removeprefix("whsec_") not in repr(receipt)
    assert len(receipt.error) < 500
    return receipt.error


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, "delivered"),
        (202, "delivered"),
        (204, "delivered"),
        (301, "failed"),
        (400, "failed"),
        (404, "failed"),
        (410, "gone"),
        (429, "failed"),
        (500, "failed"),
        (503, "failed"),
    ],
)
async def test_the_status_decides(notifier: Notifier, status: int, outcome: str) -> None:
    async with receiving() as receiver:
        receiver.answers = [status]
        receipt = await notifier.notify(target(receiver.url()), NOTICE)
        assert (receipt.outcome, receipt.status) == (outcome, status)
        assert receipt.duration_ms >= 0
        if outcome != "delivered":
            assert clean(receipt) == f"HTTP {status}"
        assert [call.body for call in receiver.calls] == [BODY]  # also a redirect is not followed
        assert receiver.calls[0].id == NOTICE.id
        assert receiver.calls[0].verified_by(SECRET)["type"] == "a:b"


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        ((503, {"Retry-After": "7"}), 7.0),
        ((429, {"retry-after": " 120 "}), 120.0),
        ((500, {"Retry-After": "7"}), None),
        ((503, {"Retry-After": "soon"}), None),
        ((503, {"Retry-After": "-1"}), None),
        ((503, {"Retry-After": "9" * 40}), None),
        ((503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), 0.0),
        ((503, {}), None),
    ],
)
async def test_a_wish_to_wait_is_understood(
    notifier: Notifier, answer: Any, seconds: float | None
) -> None:
    async with receiving() as receiver:
        receiver.answers = [answer]
        receipt = await notifier.notify(target(receiver.url()), NOTICE)
    assert receipt.retry_after_seconds == seconds


async def test_a_receiver_that_hangs_costs_the_timeout_and_no_more(notifier: Notifier) -> None:
    async with receiving() as receiver:
        receiver.hold = asyncio.Event()
        async with asyncio.timeout(TIMEOUT.total_seconds() * 5):
            receipt = await notifier.notify(target(receiver.url()), NOTICE)
        receiver.hold.set()
    assert receipt.outcome == "failed"
    assert "400 ms" in clean(receipt)
    assert receipt.duration_ms >= 400


@asynccontextmanager
async def peer(
    act: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any],
) -> AsyncIterator[int]:
    """A server that is no web server."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await act(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_nobody_there_is_a_failure(notifier: Notifier) -> None:
    async with receiving() as receiver:
        url = receiver.url()
    receipt = await notifier.notify(target(url), NOTICE)
    assert receipt.outcome == "failed"
    assert "refused" in clean(receipt)


async def test_garbage_instead_of_http_is_a_failure(notifier: Notifier) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"\x00\xff SSH-2.0 what?\r\n\r\n")
        await writer.drain()

    async with peer(babble) as port:
        receipt = await notifier.notify(target(f"http://127.0.0.1:{port}/"), NOTICE)
    assert receipt.outcome == "failed"
    clean(receipt)


async def test_a_receiver_that_talks_for_ever_is_cut_off(notifier: Notifier) -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    async with peer(flood) as port, asyncio.timeout(2):
        receipt = await notifier.notify(target(f"http://127.0.0.1:{port}/"), NOTICE)
    assert receipt.outcome == "delivered"


async def test_a_certificate_that_nobody_vouches_for_is_a_failure(notifier: Notifier) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with receiving(tls=context) as receiver:
        receipt = await notifier.notify(target(receiver.url()), NOTICE)
        assert receiver.calls == []
    assert receipt.outcome == "failed"
    assert "certificate" in clean(receipt).lower()


async def test_an_address_that_must_not_be_dialled_is_a_failure(notifier: Notifier) -> None:
    receipt = await notifier.notify(target("http://169.254.169.254/latest"), NOTICE)
    assert receipt.outcome == "failed"
    assert clean(receipt).startswith("egress_denied")


async def test_cancelling_ends_it_at_once(notifier: Notifier, receiver: Receiver) -> None:
    receiver.hold = asyncio.Event()
    task = asyncio.create_task(notifier.notify(target(receiver.url()), NOTICE))
    await receiver.until(lambda: receiver.calls)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


def test_nothing_that_prints_a_target_prints_its_secret() -> None:
    assert SECRET not in repr(target("http://h/"))


# --- what becomes of a verdict


class Dice(random.Random):
    def random(self) -> float:
        return 1.0


FAILED = Receipt(outcome="failed", duration_ms=1)


def test_pauses_grow_up_to_the_cap_and_then_it_is_over() -> None:
    pauses = [judge(FAILED, attempt, Policy(), Dice()) for attempt in range(1, 9)]
    seconds = [verdict.pause.total_seconds() for verdict in pauses[:-1]]
    assert seconds == [5, 25, 125, 625, 3125, 3600, 3600]
    assert pauses[-1].outcome == "dead"
    assert judge(FAILED, 10_000, Policy(attempts=50), Dice()).outcome == "dead"


def test_a_receivers_wish_comes_before_our_pause_but_not_beyond_the_cap() -> None:
    asked = Receipt(outcome="failed", duration_ms=1, retry_after_seconds=60)
    assert judge(asked, 1, Policy(), Dice()).pause == timedelta(seconds=65)
    asked = Receipt(outcome="failed", duration_ms=1, retry_after_seconds=1e9)
    assert judge(asked, 1, Policy(), Dice()).pause == timedelta(hours=1)


def test_a_message_has_the_same_id_at_every_attempt_and_no_dot_in_it() -> None:
    assert message_id("1-2.3", "wh_a") == "1-2_3_wh_a"
