"""What a probe's facts amount to: the rules that all kinds of probes share, as one pure function.

The first of these that applies decides, and gives the finding its error:

    unhealthy   the exchange failed, or its status is not an expected one
    unhealthy   a condition does not hold
    unhealthy   the body's own `status` says so
    degraded    the body's own `status` says so
    degraded    a condition for being more than degraded does not hold

How long one answer took says nothing here but to conditions: see `latency.py`.

A condition about something replaces the rule about it: one that names [STATUS], [CONNECTED] or
[DNS_RCODE] the first, one that reads [BODY].status those of the body.
"""

from collections.abc import Mapping
from typing import Any, Final

from registryd.probing.conditions import Condition, Facts, Name, evaluate, parse
from registryd.probing.types import Finding, Target, Verdict

WORDS: Final[Mapping[str, Verdict]] = {
    **dict.fromkeys(("healthy", "ok", "up", "pass", "passing", "success"), "healthy"),
    **dict.fromkeys(("degraded", "warn", "warning"), "degraded"),
    **dict.fromkeys(
        ("unhealthy", "down", "fail", "failing", "failed", "critical", "error", "out_of_service"),
        "unhealthy",
    ),
}
"""What services write into the `status` of their health document: those of Spring, of the IETF's health
draft, of Consul, and ours. Other words say nothing."""


def judge(
    target: Target,
    facts: Facts,
    *,
    fault: str | None = None,
    about: Name | None = None,
    body: Mapping[str, Any] | None = None,
) -> Finding:
    """The finding. `fault` is what went wrong before any condition was asked; one that is `about` a
    placeholder gives way to conditions that name it. `body` is a JSON object that the target sent."""
    asked = _parsed((*target.conditions, *target.degraded_conditions))
    if about is not None and any(one.names(about) for one in asked):
        fault = None
    outcome = evaluate(target.conditions, facts)
    better = evaluate(target.degraded_conditions, facts)
    verdict, error = _verdict(
        fault=fault,
        failed=_first_failed(outcome),
        worse=_first_failed(better),
        said=None if any(one.reads("status") for one in asked) else _word(body),
    )
    return Finding(
        verdict=verdict,
        response_time_ms=facts.response_time_ms,
        error=error,
        body=None if verdict == "unhealthy" else body,
        conditions=outcome + better,
    )


def _verdict(
    *, fault: str | None, failed: str | None, worse: str | None, said: str | None
) -> tuple[Verdict, str | None]:
    if fault is not None:
        return "unhealthy", fault
    if failed is not None:
        return "unhealthy", f"condition failed: {failed}"
    spoken = WORDS[said] if said is not None else "healthy"
    if spoken != "healthy":
        return spoken, f"the body says {said}"
    if worse is not None:
        return "degraded", f"condition failed: {worse}"
    return "healthy", None


def _first_failed(outcome: tuple[tuple[str, bool], ...]) -> str | None:
    return next((text for text, holds in outcome if not holds), None)


def _word(body: Mapping[str, Any] | None) -> str | None:
    """The body's own status, where it is a word we know."""
    said = body.get("status") if body is not None else None
    if not isinstance(said, str) or len(said) > 32:
        return None
    word = said.strip().lower()
    return word if word in WORDS else None


def _parsed(texts: tuple[str, ...]) -> list[Condition]:
    parsed = []
    for text in texts:
        try:
            parsed.append(parse(text))
        except ValueError:
            pass  # refused when it was registered; if it stands there all the same, it does not hold
    return parsed
