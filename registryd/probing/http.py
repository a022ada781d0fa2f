"""The http probe: one request, and what status, body and conditions say about the answer.

Nothing is followed, decompressed or kept: a redirect is an answer like any other (and no success unless
it is expected), and a compressed body is only so many bytes. Of a body longer than 64 KiB the rest is
never read, and what was read counts as text, not as JSON.
"""

import json
import re
from datetime import timedelta
from math import isfinite
from typing import Any, Final, NoReturn

from registryd.errors import EgressDenied, OutboundFailed
from registryd.kit.clock import Clock
from registryd.kit.outbound import Outbound, OutboundReply
from registryd.probing.conditions import Facts
from registryd.probing.types import Finding, Target
from registryd.probing.verdict import judge

MAX_BODY: Final = 64 * 1024
MAX_DEPTH: Final = 64

# Gives nothing back and takes a string without an end too, or one of many quotes would be tried from
# each of them.
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_BRACKET: Final = re.compile(rb"[\[\]{}]")


class HttpProbe:
    def __init__(self, outbound: Outbound, clock: Clock) -> None:
        self._outbound = outbound
        self._clock = clock

    async def probe(self, target: Target) -> Finding:
        started = self._clock.monotonic()
        try:
            reply = await self._outbound.request(
                target.method,
                target.url,
                headers=target.headers,
                body=None if target.body is None else target.body.encode("utf-8", "replace"),
                timeout=timedelta(milliseconds=target.timeout_ms),
                max_body=MAX_BODY,
                verify_tls=target.verify_tls,
                server_name=target.server_name,
            )
        except (EgressDenied, OutboundFailed) as error:
            spent = (self._clock.monotonic() - started) * 1000
            return judge(target, Facts(response_time_ms=spent), fault=error.detail)
        return self._judge(target, reply, (self._clock.monotonic() - started) * 1000)

    def _judge(self, target: Target, reply: OutboundReply, spent_ms: float) -> Finding:
        document = None if reply.truncated else json_or_none(reply.body)
        expires_at = reply.certificate_expires_at
        facts = Facts(
            response_time_ms=spent_ms,
            connected=True,
            status=reply.status,
            ip=reply.address,
            certificate_expires_in=None if expires_at is None else expires_at - self._clock.now(),
            text=reply.body.decode("utf-8", "replace"),
            document=document,
        )
        return judge(
            target,
            facts,
            fault=None if expected(reply.status, target) else f"HTTP {reply.status}",
            about="STATUS",
            body=document if isinstance(document, dict) else None,
        )


def expected(status: int, target: Target) -> bool:
    if target.expected_statuses:
        return status in target.expected_statuses
    return 200 <= status <= 299


def json_or_none(body: bytes) -> Any:
    """`body` decoded, or None where it is no JSON that others could take from us: NaN and infinities,
    half surrogate pairs and absurd depth are not handed on."""
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _depth(body) > MAX_DEPTH:
        return None
    try:
        document = _DECODER.decode(body.decode("utf-8-sig"))
        if b"\\u" in body:
            json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError):  # UnicodeError is a ValueError
        return None
    return document


def _depth(body: bytes) -> int:
    """The deepest nesting of brackets outside strings."""
    depth = deepest = 0
    for bracket in _BRACKET.findall(_STRING.sub(b"", body)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _finite(literal: str) -> float:
    number = float(literal)
    if not isfinite(number):
        raise ValueError("the number is too large")
    return number


# Made once: json.loads makes one for every call that wants anything but its defaults.
_DECODER: Final = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)
