"""The tcp probe: whether a connection, and with TLS its handshake, comes about. Nothing is sent."""

from datetime import timedelta

from registryd.errors import EgressDenied, OutboundFailed
from registryd.kit.clock import Clock
from registryd.kit.outbound import Outbound
from registryd.probing.conditions import Facts
from registryd.probing.endpoint import endpoint_of
from registryd.probing.types import Finding, Target
from registryd.probing.verdict import judge


class TcpProbe:
    def __init__(self, outbound: Outbound, clock: Clock) -> None:
        self._outbound = outbound
        self._clock = clock

    async def probe(self, target: Target) -> Finding:
        started = self._clock.monotonic()
        try:
            endpoint = endpoint_of(target.url)
            async with self._outbound.connect(
                endpoint.host,
                endpoint.port,
                timeout=timedelta(milliseconds=target.timeout_ms),
                tls=endpoint.tls,
                verify_tls=target.verify_tls,
                server_name=target.server_name,
            ) as line:
                spent = (self._clock.monotonic() - started) * 1000
                expires_at = line.certificate_expires_at
                facts = Facts(
                    response_time_ms=spent,
                    connected=True,
                    ip=line.address,
                    certificate_expires_in=(
                        None if expires_at is None else expires_at - self._clock.now()
                    ),
                )
        except (EgressDenied, ValueError) as error:
            return judge(target, self._nothing(started), fault=str(error))
        except OutboundFailed as error:
            return judge(target, self._nothing(started), fault=error.detail, about="CONNECTED")
        return judge(target, facts)

    def _nothing(self, started: float) -> Facts:
        return Facts(response_time_ms=(self._clock.monotonic() - started) * 1000)
