"""The names of everything in the store. Nothing else builds a key or a channel.

With one partition no name carries a hash tag; with several each partition's keys share the tag
`{p}`, so that one script may touch all of them on a Redis Cluster.
"""

from dataclasses import dataclass

CORE = (
    "meta",
    "leases",
    "renew",
    "inst",
    "docs",
    "admin",
    "checks",
    "checkstate",
    "stream",
    "tombstones",
    "held",
    "drains",
    "until",
)
"""The fixed keys of a partition, in the order in which every script receives them as KEYS."""

EVENTS = ("webhooks", "webhooks:state", "webhooks:ready", "webhooks:disabled", "audit")
"""The fixed keys of webhooks and history, in the order in which their scripts receive them, behind the
stream."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one partition under `prefix` (the setting `redis.keyPrefix`)."""

    prefix: str = "ossa"
    partition: int | None = None

    @property
    def tag(self) -> str:
        """What stands between a key's family and its last part: `{p}:`, or nothing."""
        return "" if self.partition is None else f"{{{self.partition}}}:"

    @property
    def core(self) -> list[str]:
        suffix = "" if self.partition is None else f":{{{self.partition}}}"
        return [f"{self.prefix}:{name}{suffix}" for name in CORE]

    @property
    def meta(self) -> str:
        return self.core[CORE.index("meta")]

    @property
    def stream(self) -> str:
        return self.core[CORE.index("stream")]

    @property
    def tombstones(self) -> str:
        return self.core[CORE.index("tombstones")]

    def instance(self, identity: str) -> str:
        """The expiring key of `<service>:<instance>`."""
        return f"{self.prefix}:services:{self.tag}{identity}"

    def index(self, term: str) -> str:
        """The index set of a term such as `capability:chat`."""
        return f"{self.prefix}:index:{self.tag}{term}"

    @property
    def events(self) -> list[str]:
        """What the scripts of webhooks and history receive as KEYS."""
        suffix = "" if self.partition is None else f":{{{self.partition}}}"
        return [self.stream, *(f"{self.prefix}:{name}{suffix}" for name in EVENTS)]

    @property
    def audit(self) -> str:
        return self.events[1 + EVENTS.index("audit")]

    def webhook(self, identity: str, part: str) -> str:
        """One of the keys of a subscription; lua/lib.lua of events names the parts."""
        return f"{self.prefix}:webhooks:{self.tag}{identity}:{part}"

    def history(self, service: str) -> str:
        return f"{self.prefix}:history:{self.tag}{service}"

    def auth(self, part: str) -> str:
        """One of the keys of `registryd/auth/store.py`; no service is in them, so they carry no tag."""
        return f"{self.prefix}:auth:{part}"

    def channel(self, event_type: str) -> str:
        """The pub/sub channel of an event type; it carries no tag, subscribers use a pattern."""
        return f"{self.prefix}:events:{event_type}"
