"""`registryd top`: what it shows, what keys do, and how it leaves a terminal."""

import asyncio
import fcntl
import os
import pty
import signal
import struct
import sys
import termios
from datetime import UTC, datetime
from typing import Any

import pytest
from commands import ROOT, environment
from daemons import Api

from registryd.cli.board import Board, Figures, bar, rate, screen
from registryd.cli.top import keys
from registryd.client.stream import Interrupted, Message
from registryd.errors import NotReady
from registryd.registry.types import InstanceShown

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)


def instance(name: str, instance_id: str, health: str = "healthy", **more: Any) -> InstanceShown:
    since = more.pop("since", "2030-01-01T11:59:00.000Z")
    return InstanceShown.model_validate(
        {
            "name": name, "instanceId": instance_id, "endpoint": "http://10.0.0.1:80", "weight": 1,
            "capabilities": [{"name": "chat"}], "metadata": {}, "incarnation": "1", "revision": "1-1",
            "health": {"status": health, "since": since}, "registeredAt": since, "updatedAt": since,
            "lease": {"ttlSeconds": 30, "renewIntervalSeconds": 10, "state": "live"}, **more,
        }
    )  # fmt: skip


def board(*instances: InstanceShown) -> Board:
    made = Board("http://127.0.0.1:8082")
    made.followed.instances = {(one.name, one.instance_id): one for one in instances}
    made.followed.revision = "1-1"
    return made


def three() -> Board:
    return board(
        instance("asr", "a", "unhealthy"),
        instance("chat", "a"),
        instance("chat", "b", "degraded", since="2030-01-01T11:59:59.000Z"),
        instance("tts", "a"),
    )


def shown(one: Board, width: int = 80, height: int = 24) -> list[str]:
    return [line.plain for line in screen(one, width, height, NOW, 100.0, colour=False)]


def press(one: Board, *pressed: str) -> Board:
    for key in pressed:
        assert one.press(key)
    return one


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50), (40, 8), (20, 4)])
def test_a_screen_is_filled_and_never_overrun(width: int, height: int) -> None:
    many = board(*(instance(f"service-{number}" * 5, "a" * 60) for number in range(100)))
    lines = screen(many, width, height, NOW, 100.0, colour=True)
    assert len(lines) == height
    assert max(line.cell_len for line in lines) <= width


def test_services_are_listed_with_their_health_counts_and_age() -> None:
    text = "\n".join(shown(three()))
    assert "3 services  4 instances" in text
    rows = [line.split() for line in shown(three())[5:8]]
    assert [row[:3] for row in rows] == [
        ["asr", "unhealthy", "0/1"],
        ["chat", "healthy", "1/2"],
        ["tts", "healthy", "1/1"],
    ]
    assert rows[1][-1] == "1s"


def test_keys_move_open_and_come_back() -> None:
    one = press(three(), "down", "enter")
    assert one.opened == "chat"
    assert [line.split()[1] for line in shown(one)[5:7]] == ["a", "b"]
    press(one, "escape")
    assert (one.opened, one.at) == ("", 1)
    press(one, "G")
    assert one.at == 2
    press(one, "j", "k", "k", "k", "k")
    assert one.at == 0
    assert not one.press("q")


def test_the_list_is_sorted_by_turns() -> None:
    one = three()
    assert one.names == ["asr", "chat", "tts"]
    assert press(one, "s").names == ["asr", "chat", "tts"], "the worst instance first"
    assert press(one, "s").names == ["chat", "asr", "tts"], "the most instances first"
    assert press(one, "s").names[0] == "chat", "what changed last first"
    assert press(one, "s").sort == "name"


def test_a_filter_is_typed_and_dropped() -> None:
    one = press(three(), "/", "q", "erase", "t", "t", "s")
    assert one.names == ["tts"]
    assert "/tts" in shown(one)[-1]
    press(one, "enter")
    assert "filter tts" in "".join(shown(one, 200))
    assert press(one, "escape").names == ["asr", "chat", "tts"]


def test_a_pause_holds_the_picture_while_changes_go_on() -> None:
    one = press(three(), "p")
    one.followed.instances.clear()
    assert one.names == ["asr", "chat", "tts"]
    assert shown(one)[-1].startswith("PAUSED")
    assert press(one, "p").names == []


def test_the_cursor_stays_visible_in_a_long_list() -> None:
    one = press(board(*(instance(f"s{number:03}", "a") for number in range(100))), "G")
    assert any(line.startswith("s099") for line in shown(one))


def test_an_outage_is_told_and_ends_with_the_next_sign_of_life() -> None:
    one = three()
    one.followed.take(Interrupted(NotReady("away")), 90.0)
    assert "connection lost 10s ago" in "".join(shown(one))
    one.followed.take(Message("", "1-1", ""), 101.0)
    assert "connection lost" not in "".join(shown(one))


def test_rates_are_differences_and_survive_a_restart_of_the_daemon() -> None:
    text = 'registryd_renewals_total{outcome="renewed"} 10.0\nregistryd_http_requests_total{a="b"} 4.0\n'
    figures = Figures.read({"state": "ready"}, text, 5.0)
    assert (figures.heartbeats, figures.requests) == (10.0, 4.0)
    assert rate(30.0, 10.0, 2.0) == 10.0
    assert rate(3.0, 10.0, 2.0) is None
    assert Figures.read({}, "", 5.0).heartbeats is None, "a key may not be allowed to look"
    away = Figures.read({"store": {"reachable": False, "staleMs": 4000}}, "", 5.0)
    assert away.state == "store away 4 s"


def test_the_bar_has_a_piece_for_each_health_and_tells_them_apart_without_colour() -> None:
    text = bar(three().instances, 80).plain
    assert text.endswith("healthy 2  degraded 1  unhealthy 1")
    assert (text.count("█"), text.count("▓"), text.count("▒")) == (22, 11, 11)
    assert bar([], 80).plain == ""


def test_events_run_along_and_cannot_command_the_terminal() -> None:
    one = three()
    one.happened(
        {"type": "service:expired", "subject": "\x1b[2J/a", "time": "2030-01-01T11:00:00Z"}
    )
    text = "\n".join(shown(one))
    assert "11:00:00  service:expired" in text
    assert "\x1b" not in text


def test_keys_are_told_from_what_terminals_send() -> None:
    assert keys("j\x1b[A\x1bOB\r\x7f") == ["j", "up", "down", "enter", "erase"]
    assert keys("\x1b") == ["escape"]
    assert keys("\x1b[5~q") == ["q"]


# --- in a real terminal


async def in_terminal(
    api: Api, width: int, height: int, *steps: bytes | signal.Signals, **more: str
) -> tuple[str, int]:
    """What it wrote, and its exit code. Each step waits for a picture first."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    before = termios.tcgetattr(side)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "registryd", "top", stdin=side, stdout=side, stderr=side,
        cwd=ROOT, env=environment(REGISTRYD_URL=api.base, TERM="xterm-256color", **more),
    )  # fmt: skip
    os.set_blocking(main, False)
    written, waiting = "", list(steps)
    seen = 0
    while process.returncode is None:
        await asyncio.sleep(0.05)
        try:
            written += os.read(main, 1 << 20).decode(errors="replace")
        except BlockingIOError:
            continue
        if waiting and "chat" in written[seen:]:
            step = waiting.pop(0)
            seen = len(written)
            if isinstance(step, bytes):
                os.write(main, step)
            else:
                process.send_signal(step)
    assert termios.tcgetattr(side) == before, "the terminal is as it was"
    os.close(main)
    os.close(side)
    return written, process.returncode


@pytest.mark.system
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("width", "height", "steps"),
    [
        (80, 24, (b"\r", b"q")),
        (200, 50, (signal.SIGTERM,)),
        (80, 24, (signal.SIGINT,)),
    ],
)
async def test_a_terminal_is_left_as_it_was(
    api: Api, width: int, height: int, steps: tuple[bytes | signal.Signals, ...]
) -> None:
    await api.register("chat", "a", health={"status": "healthy"})
    written, code = await in_terminal(api, width, height, *steps)
    assert code == 0
    assert "\x1b[?1049h" in written
    assert written.rindex("\x1b[?1049l") > written.rindex("\x1b[?1049h")
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")
    assert "Traceback" not in written
