import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import structlog

from registryd.kit import logs

PLANTED = "hunter2-very-secret"
RANDOM = "hunter2" + "0aB9" * 8


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextmanager
def _kept_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    with _kept_logging():
        yield io.StringIO()


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    with _kept_logging():
        yield Terminal()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def fail(message: str) -> None:
    raise ValueError(message)


def fail_with_a_local() -> None:
    password_of_the_caller = PLANTED
    fail(f"cannot use {len(password_of_the_caller)} characters")


def test_json_holds_one_object_a_line_with_a_utc_time(stream: io.StringIO) -> None:
    logs.configure("info", "json", stream)
    structlog.get_logger("a.b").info("it happened", count=3)
    (line,) = lines(stream)
    timestamp = line.pop("timestamp")
    assert isinstance(timestamp, str)
    assert timestamp.endswith("Z")
    assert line == {"event": "it happened", "count": 3, "level": "info", "logger": "a.b"}


def test_the_standard_library_goes_the_same_way(stream: io.StringIO) -> None:
    logs.configure("info", "json", stream)
    logging.getLogger("aiohttp.server").warning("bad %s", "request", extra={"peer": "::1"})
    (line,) = lines(stream)
    assert (line["event"], line["level"], line["logger"], line["peer"]) == (
        "bad request",
        "warning",
        "aiohttp.server",
        "::1",
    )


def test_auto_is_json_where_nobody_watches(stream: io.StringIO) -> None:
    logs.configure("info", "auto", stream)
    structlog.get_logger("a").info("x")
    assert lines(stream)[0]["event"] == "x"


def test_auto_is_for_people_on_a_terminal(terminal: Terminal) -> None:
    logs.configure("info", "auto", terminal)
    structlog.get_logger("a").info("it happened")
    assert "it happened" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")


def test_a_level_can_be_changed_while_running(stream: io.StringIO) -> None:
    logs.configure("warning", "json", stream)
    log = structlog.get_logger("a")
    log.info("before")
    logs.set_level("debug")
    log.debug("after")
    assert [line["event"] for line in lines(stream)] == ["after"]


def test_configuring_again_replaces_the_earlier_set_up(stream: io.StringIO) -> None:
    later = io.StringIO()
    log = structlog.get_logger("a")
    logs.configure("info", "json", stream)
    log.info("first")
    logs.configure("info", "json", later)
    log.info("second")
    assert [line["event"] for line in lines(stream)] == ["first"]
    assert [line["event"] for line in lines(later)] == ["second"]


def test_configuring_leaves_the_handlers_of_others_alone(stream: io.StringIO) -> None:
    other = logging.NullHandler()
    logging.getLogger().addHandler(other)
    logs.configure("info", "json", stream)
    assert other in logging.getLogger().handlers


def test_the_context_of_a_request_is_on_every_line(stream: io.StringIO) -> None:
    logs.configure("info", "json", stream)
    structlog.contextvars.bind_contextvars(request_id="r1")
    logging.getLogger("x").warning("w")
    structlog.get_logger("y").info("i")
    assert [line["request_id"] for line in lines(stream)] == ["r1", "r1"]


@pytest.mark.parametrize("format", ["json", "console"])
def test_an_exception_is_told_without_the_locals_of_its_frames(
    stream: io.StringIO, format: logs.Format
) -> None:
    logs.configure("info", format, stream)
    try:
        fail_with_a_local()
    except ValueError:
        structlog.get_logger("a").exception("failed")
        logging.getLogger("b").exception("failed")
    assert stream.getvalue().count("cannot use 19 characters") == 2
    assert "fail_with_a_local" in stream.getvalue()
    assert PLANTED not in stream.getvalue()


@pytest.mark.parametrize("format", ["json", "console"])
@pytest.mark.parametrize(
    "key",
    [
        "password",
        "redis_password",
        "secret",
        "token",
        "Authorization",
        "api_key",
        "X-API-Key",
        "apiKey",
        "credential",
        "set-cookie",
        "private_key",
    ],
)
def test_a_value_under_a_secret_key_is_masked(
    stream: io.StringIO, format: logs.Format, key: str
) -> None:
    logs.configure("info", format, stream)
    log = structlog.get_logger("a")
    log.info("x", **{key: PLANTED})
    log.info("x", headers={key: PLANTED}, many=[{key: [PLANTED]}])
    logging.getLogger("b").warning("x", extra={key: PLANTED})
    assert PLANTED not in stream.getvalue()
    assert "****" in stream.getvalue()


@pytest.mark.parametrize("format", ["json", "console"])
@pytest.mark.parametrize(
    "text",
    [
        f"redis://user:{PLANTED}@host:6379/0",
        f"redis://:{PLANTED}@host",
        f"rediss://u:a/b@{PLANTED}@host",
        f"unix://u:{PLANTED}@/run/redis.sock",
        f"https://{PLANTED}@host/path",
        f"https://u:{PLANTED}@host/path",
        f"GET /x?token={PLANTED}&a=1",
        f"redis://h?password={PLANTED}",
        f"Authorization: Bearer {PLANTED}",
        f"Authorization: Basic {PLANTED}",
        f"{{'password': '{PLANTED}', 'a': 1}}",
        f'{{"api_key": "{PLANTED}"}}',
    ],
)
def test_a_secret_inside_a_text_is_masked_wherever_the_text_is(
    stream: io.StringIO, format: logs.Format, text: str
) -> None:
    logs.configure("info", format, stream)
    log = structlog.get_logger("a")
    log.info(text)
    log.info("x", url=text, deep={"a": [text]}, error=ValueError(text))
    logging.getLogger("b").warning("x %s", text)
    try:
        fail(text)
    except ValueError:
        log.exception("failed")
    assert PLANTED not in stream.getvalue()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            f"the key rgd_0123456789_{RANDOM} is not known",
            "the key rgd_0123456789_**** is not known",
        ),
        (f"whsec_{RANDOM}+/==.", "whsec_****."),
        (f"X-API-Key: ghp_{RANDOM}", "X-API-Key: ghp_****"),
        (f"got eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.{RANDOM}_-!", "got ****!"),
        (f"got eyJhbGciOiJub25lIn0.{RANDOM}.", "got ****"),
    ],
)
def test_keys_and_tokens_are_known_by_their_shape(text: str, shown: str) -> None:
    assert logs.mask_secrets(text) == shown
    assert RANDOM not in shown


@pytest.mark.parametrize(
    "text",
    [
        "test_a_value_under_a_long_name_that_is_no_key_at_all_stays_as_it_is",
        "wh_0123456789abcdef",
        "cmdstat_evalsha",
        "eyJ is how they begin",
        "http://host:8080/users/a@b.example",
        "redis://host:6379/0",
        "mail me@there.example, see https://there.example/x",
        "unexpected token: }",
        "the token expired; basic rules apply",
    ],
)
def test_a_text_without_credentials_stays_as_it_is(text: str) -> None:
    assert logs.mask_secrets(text) == text


def test_numbers_and_flags_are_logged_as_such(stream: io.StringIO) -> None:
    logs.configure("info", "json", stream)
    structlog.get_logger("a").info("x", a=1, b=0.5, c=True, d=None, has_token=False)
    (line,) = lines(stream)
    assert (line["a"], line["b"], line["c"], line["d"], line["has_token"]) == (
        1,
        0.5,
        True,
        None,
        False,
    )


@pytest.mark.parametrize(
    "piece", ["a.", "a://", "redis://", "a@", "bearer ", "token=", '"secret" : ', "authorization: "]
)
def test_a_long_text_is_masked_in_linear_time(piece: str) -> None:
    # The time limit of a test is what fails: a quadratic pattern takes minutes.
    text = piece * (200_000 // len(piece))
    assert logs.mask_secrets(f"{text} https://u:{PLANTED}@host").endswith(" https://****@host")
