"""The dns probe: whether the target's host name has an address that may be dialled. None is.

The operating system is asked, as every client of the target would ask it: hosts file and search list
count. [DNS_RCODE] is therefore the response code that its answer amounts to.
"""

from datetime import timedelta

from registryd.errors import EgressDenied, OutboundFailed
from registryd.kit.clock import Clock
from registryd.kit.outbound import Outbound
from registryd.probing.conditions import Facts
from registryd.probing.endpoint import host_of
from registryd.probing.types import Finding, Target
from registryd.probing.verdict import judge


class DnsProbe:
    def __init__(self, outbound: Outbound, clock: Clock) -> None:
        self._outbound = outbound
        self._clock = clock

    async def probe(self, target: Target) -> Finding:
        started = self._clock.monotonic()
        try:
            addresses = await self._outbound.resolve(
                host_of(target.url), timeout=timedelta(milliseconds=target.timeout_ms)
            )
        except (EgressDenied, ValueError) as error:
            return judge(target, self._facts(started), fault=str(error))
        except OutboundFailed as error:
            rcode = error.members.get("rcode")
            return judge(
                target,
                self._facts(started, rcode=str(rcode) if rcode is not None else None),
                fault=error.detail,
                about=None if rcode is None else "DNS_RCODE",
            )
        return judge(target, self._facts(started, ip=str(addresses[0]), rcode="NOERROR"))

    def _facts(self, started: float, *, ip: str | None = None, rcode: str | None = None) -> Facts:
        return Facts(
            response_time_ms=(self._clock.monotonic() - started) * 1000,
            connected=ip is not None,
            ip=ip,
            dns_rcode=rcode,
        )
