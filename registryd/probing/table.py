"""Every kind of probe, by the name it has in a health check. A `ttl` check has none: it waits for beats."""

from collections.abc import Mapping

from registryd.kit.clock import Clock, SystemClock
from registryd.kit.outbound import Outbound
from registryd.probing.dns import DnsProbe
from registryd.probing.grpc import GrpcProbe
from registryd.probing.http import HttpProbe
from registryd.probing.tcp import TcpProbe
from registryd.probing.types import Probe


def probes(outbound: Outbound, clock: Clock | None = None) -> Mapping[str, Probe]:
    """`clock` measures response times and what is left of certificates."""
    clock = clock or SystemClock()
    return {
        "http": HttpProbe(outbound, clock),
        "tcp": TcpProbe(outbound, clock),
        "grpc": GrpcProbe(outbound, clock),
        "dns": DnsProbe(outbound, clock),
    }
