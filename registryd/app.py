"""The composition root: builds every part in the order in which one needs the other, and nothing else."""

import asyncio
import ipaddress
import random
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

import structlog

from registryd import __version__
from registryd.auth import certificates
from registryd.auth.access import Anonymous, RequiredAccess
from registryd.auth.certificates import CertificateRule
from registryd.auth.journal import WRITE_EVERY, Journal
from registryd.auth.keyfile import checked_prefixes
from registryd.auth.keyfile import read as read_keys
from registryd.auth.keyring import LOOK_EVERY, USES_EVERY, Keyring
from registryd.auth.routes import AuditRoutes
from registryd.auth.store import AuthStore
from registryd.auth.types import ROLES
from registryd.auth.watched import WatchedFile
from registryd.config import Auth, Redis, Settings
from registryd.errors import StartupRefused
from registryd.events import asyncapi
from registryd.events.cloudevent import source_of
from registryd.events.fanout import Fanout
from registryd.events.history_routes import HistoryRoutes
from registryd.events.propagation import Propagation
from registryd.events.recent import Recent
from registryd.events.routes import BYE, EventRoutes
from registryd.events.stream import EventStreams
from registryd.events.watch import Watches
from registryd.events.webhook_routes import WebhookRoutes
from registryd.events.webhook_store import WebhookStore
from registryd.events.webhooks import Courier, Policy
from registryd.feed.broadcast import Broadcast, Ring
from registryd.feed.follower import Follower
from registryd.feed.stream import ChangeStream
from registryd.health.routes import HealthRoutes
from registryd.health.shown import last_error
from registryd.health.store import InstanceChecks
from registryd.kit.clock import Clock, SystemClock
from registryd.kit.outbound import EgressPolicy, Outbound, OutboundLimits, networks
from registryd.kit.tasks import Supervisor
from registryd.metrics import Metrics
from registryd.notify.table import notifiers
from registryd.probing.checker import Checker, Limits
from registryd.probing.table import probes
from registryd.probing.types import Probe
from registryd.registry.audit import Auditor
from registryd.registry.importer import Importer
from registryd.registry.node import Node
from registryd.registry.preflight import check_rights, check_server, flagged, scripts_for
from registryd.registry.quota import Quota
from registryd.registry.reads import Reads
from registryd.registry.reaper import Reaper
from registryd.registry.registrar import Registrar
from registryd.registry.renew import RenewalQueue
from registryd.registry.routes import ServiceRoutes
from registryd.registry.store import Guard, RegistryStore, StoreLimits
from registryd.registry.sync import ViewSync
from registryd.registry.transfer_routes import TransferRoutes
from registryd.registry.types import HealthCheck
from registryd.registry.view import Instance, View
from registryd.storage.connection import Connection, Trust
from registryd.storage.embedded import EmbeddedStore
from registryd.storage.figures import StoreFigures
from registryd.storage.keys import Keys
from registryd.storage.scripts import Script, ScriptRunner, load
from registryd.web import codec, openapi
from registryd.web.access import Access, OpenAccess
from registryd.web.codec import BodyLimits
from registryd.web.forwarded import Proxies
from registryd.web.origin import LOCAL_HOSTS, Origins, host_of
from registryd.web.pipeline import Pipeline
from registryd.web.router import Router
from registryd.web.routing import Route
from registryd.web.server import HttpServer
from registryd.web.throttle import Allowance, Throttle
from registryd.web.throttle import Limits as UseLimits
from registryd.web.tls import Certificates, TlsFiles

if TYPE_CHECKING:
    from registryd.auth.jwks import Tokens

log = structlog.get_logger(__name__)

TITLE: Final = "registryd"
STORE_PATIENCE: Final = timedelta(seconds=10)
"""How long a store that does not answer at start may take."""
FIRST_LOAD: Final = timedelta(seconds=60)
AUDIT_EVERY: Final = timedelta(seconds=60)
IMPORTS_EVERY: Final = timedelta(seconds=1)
"""How soon an import goes on whose daemon has died."""
FIGURES_EVERY: Final = timedelta(seconds=10)
CHECK_PAUSE: Final = timedelta(milliseconds=20)
"""Between two looks for due checks: what becomes due meanwhile is claimed together."""
CARRY_PAUSE: Final = timedelta(milliseconds=50)
"""Between hearing of changes and carrying them on: those of one moment go together, and after the
watchers have been told."""
HINT_PATIENCE: Final = timedelta(seconds=10)
CERTIFICATES_EVERY: Final = timedelta(seconds=2)
"""How soon a renewed certificate is noticed."""
PING_EVERY: Final = timedelta(seconds=15)
"""How often a stream without news shows that it is open: proxies close silent ones after 30 s or more."""


class Daemon:
    """One registryd: `start`, then `stop`. Both may be used in tests, any number of times a process."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        probes: Mapping[str, Probe] | None = None,
        access: Access | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.view = View()
        self.addresses: list[tuple[str, int]] = []
        self.store_address = ""
        self._clock = clock or SystemClock()
        self._probes = probes
        self._access = access
        self._closing = asyncio.Event()
        self._undo: list[Callable[[], Awaitable[object]]] = []

    async def start(self) -> None:
        """Serving, when it returns. Raises StartupRefused, with nothing left behind."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    def drain(self) -> None:
        """Readiness fails, waiting readers are answered, streams end and connections end with their next
        answer; everything else goes on until `stop`."""
        self._closing.set()
        self.pipeline.draining = True
        self.broadcast.close(BYE)

    async def stop(self) -> None:
        """Readiness fails first, waiting readers are let go, what is under way ends, the store stops last."""
        self._closing.set()
        while self._undo:
            await self._undo.pop()()

    def apply(self, settings: Settings) -> None:
        """Takes over the settings that can change while running; the caller has told them apart."""
        self.settings = settings
        self.reaper.guard = guard_of(settings)

    async def _start(self) -> None:
        settings = self.settings
        connection = await self._connect()
        info = await check_server(connection, patience=STORE_PATIENCE)
        scripts = scripts_for(info)
        await check_rights(connection, scripts, settings.redis.key_prefix, self.metrics)
        self.wire(connection, scripts | event_scripts_for(info))
        self._undo.append(self.outbound.close)
        deployment = await self.store.set_up(settings.redis.deployment)

        loops = self.supervisor
        self._undo.append(self._end_access)
        # After the loops have stopped, so that nothing new is begun.
        self._undo.append(lambda: self.courier.stop(settings.server.shutdown_grace))
        self._undo.append(loops.stop)
        loops.start("follower", self.follower.turn)
        await self._first_load()
        loops.start(
            "sweep", self.reaper.turn, pause=settings.registry.sweep_interval.total_seconds()
        )
        loops.start("imports", self.importer.turn, pause=IMPORTS_EVERY.total_seconds())
        loops.start("store figures", self.store_figures.turn, pause=FIGURES_EVERY.total_seconds())
        loops.start("audit", self.auditor.turn, pause=AUDIT_EVERY.total_seconds())
        self._undo.append(self.checker.stop)
        if settings.health.enabled:
            loops.start("check hints", self._hint_checker)
            loops.start("checks", self.checker.turn, pause=CHECK_PAUSE.total_seconds())
        loops.start("broadcast", self.broadcast.turn)
        loops.start("ping", self.broadcast.ping, pause=PING_EVERY.total_seconds())
        loops.start("fan-out", self.fanout.turn, pause=CARRY_PAUSE.total_seconds())
        loops.start("news", self.fanout.listen)
        if settings.webhooks.enabled:
            loops.start("webhooks", self.courier.turn)
        await self._start_access()

        server = settings.server
        certificates = None
        if (files := tls_files_of(settings)) is not None:
            certificates = Certificates(files)
            loops.start("certificates", certificates.look, pause=CERTIFICATES_EVERY.total_seconds())
        http = HttpServer(
            self.pipeline,
            tls=certificates,
            throttle=self.throttle,
            keepalive_timeout=server.keepalive_timeout.total_seconds(),
        )
        self.addresses = await http.start(
            [(address.host, address.port) for address in server.listen],
            reuse_port=server.reuse_port,
        )
        self._undo.append(lambda: http.stop(server.shutdown_grace.total_seconds()))
        self._undo.append(self._end_streams)
        log.info(
            "serving",
            version=__version__,
            listen=[f"{host}:{port}" for host, port in self.addresses],
            store=self.store_address,
            deployment=deployment,
            instances=len(self.view),
            revision=str(self.view.revision),
        )

    async def _end_streams(self) -> None:
        self.broadcast.close(BYE)
        grace = self.settings.server.shutdown_grace.total_seconds()
        await self.broadcast.closed(min(max(grace, 0.1), 1.0))

    async def _connect(self) -> Connection:
        redis = self.settings.redis
        url = redis.url
        if redis.embedded:
            embedded = EmbeddedStore(self.settings.data_dir, appendfsync=redis.appendfsync)
            url = await embedded.start()
            self._undo.append(embedded.stop)
            self.store_address = f"embedded {embedded.version}, data in {embedded.data_dir}"
        connection = connection_to(url, redis, self.metrics)
        self._undo.append(connection.close)
        self.store_address = self.store_address or connection.address
        return connection

    async def _first_load(self) -> None:
        try:
            async with asyncio.timeout(FIRST_LOAD.total_seconds()):
                await self.follower.loaded_once()
        except TimeoutError:
            raise StartupRefused(
                f"the registry could not be loaded from {self.store_address} within "
                f"{FIRST_LOAD.total_seconds():.0f} s; the log says why"
            ) from None

    async def _hint_checker(self) -> None:
        """A change may have brought a check that is due now."""
        try:
            async with asyncio.timeout(HINT_PATIENCE.total_seconds()):
                await self.follower.advanced()
        except TimeoutError:
            return
        self.checker.hint()

    def wire(self, connection: Connection, scripts: dict[str, Script]) -> None:
        """Makes the parts and tells each of those it needs. Touches neither store nor network."""
        settings, metrics, view = self.settings, self.metrics, self.view
        keys = Keys(settings.redis.key_prefix)
        limits = StoreLimits(settings.registry.lease_clock_cap, settings.registry.stream_max_len)
        self.store = RegistryStore(
            ScriptRunner(connection, scripts, keys.core, metrics), keys, limits
        )
        sync = ViewSync(self.store, view, metrics, chunk=settings.view.snapshot_chunk)
        stream = ChangeStream(connection, keys)
        self.follower = Follower(stream, sync, metrics)
        self.reaper = Reaper(self.store, metrics, guard_of(settings))
        self.auditor = Auditor(
            self.store,
            connection,
            keys,
            metrics,
            tombstone_retention=settings.registry.tombstone_retention,
        )
        self.supervisor = Supervisor()

        registrar = Registrar(
            self.store,
            view,
            self.follower,
            RenewalQueue(self.store, metrics),
            default_ttl=lambda: timedelta(seconds=self.settings.registry.default_ttl_seconds),
            quota=lambda: quota_of(self.settings),
            default_check=HealthCheck(
                interval_ms=settings.health.interval_ms,
                timeout_ms=settings.health.timeout_ms,
                failure_threshold=settings.health.failure_threshold,
                success_threshold=settings.health.success_threshold,
            ),
        )
        reads = Reads(
            view,
            self.follower,
            metrics,
            cache_bytes=settings.view.result_cache_bytes,
            closing=self._closing,
        )
        services = ServiceRoutes(
            view, reads, registrar, self.reaper, self._clock, random.SystemRandom()
        )
        self.importer = Importer(
            self.store,
            view,
            self.follower,
            registrar,
            self._clock,
            quota=lambda: quota_of(self.settings),
        )
        transfer = TransferRoutes(view, reads, self.importer, self._clock)
        node = Node(
            view,
            self.follower,
            self.reaper,
            self.supervisor,
            metrics,
            closing=self._closing,
            max_stale=lambda: self.settings.view.max_stale,
        )
        # Who listens for this machine alone may look at it; for a daemon that others reach, loopback
        # would be a way in.
        health = settings.health
        self.outbound = Outbound(
            EgressPolicy(
                allowed=networks(settings.egress.allowed),
                loopback=all(one.is_loopback for one in settings.server.listen),
            ),
            # Probes that had to wait for a connection would time out: webhooks get some beside them.
            limits=OutboundLimits(
                connections=2 * health.concurrency, per_peer=4 * health.concurrency_per_host
            ),
        )
        self.store_figures = StoreFigures(connection)
        metrics.on_scrape(self.store_figures.collect)
        access, access_table = self._wire_access(AuthStore(connection, keys))
        table = [
            *services.table(),
            *transfer.table(),
            *self._wire_health(reads, registrar),
            *self._wire_streams(reads, stream, sync, keys),
            *self._wire_webhooks(reads, connection, scripts, keys),
            *access_table,
            *node.table(),
        ]
        self.table = tuple(table)
        # Made when somebody asks: it takes longer than everything else at the start together.
        self.describe = cache(lambda: openapi.document(table, title=TITLE, version=__version__))
        node.describe = cache(lambda: codec.dumps(self.describe()))
        proxies = proxies_of(settings)
        self.throttle = None
        if settings.limited:
            spared = None if proxies is None else proxies.trusts
            self.throttle = Throttle(limits_of(settings), metrics, spared=spared)
        self.pipeline = Pipeline(
            Router(table),
            metrics,
            access,
            origins=origins_of(settings),
            proxies=proxies,
            throttle=self.throttle,
            tls=settings.server.tls.cert_file is not None,
            limits=BodyLimits(seconds=settings.server.body_timeout.total_seconds()),
        )

    def _wire_access(self, store: AuthStore) -> tuple[Access, list[Route]]:
        auth, metrics, clock = self.settings.auth, self.metrics, self._clock
        table = AuditRoutes(store).table()
        if self._access is not None or auth.mode == "none":
            return self._access or OpenAccess(), table
        file = None if auth.keys_file is None else WatchedFile(auth.keys_file, read_keys)
        self.keyring = Keyring(store, clock, file)
        self.journal = Journal(store, metrics, clock)
        self.tokens = self._tokens() if auth.jwt.enabled else None
        access = RequiredAccess(
            self.keyring,
            self.journal,
            metrics,
            clock,
            tokens=self.tokens,
            certificates=certificate_rules(auth),
            anonymous=None
            if auth.anonymous.role is None
            else Anonymous(ROLES[auth.anonymous.role], networks(auth.anonymous.cidrs)),
        )
        self.keyring.changed = access.forget
        if self.tokens is not None:
            self.tokens.source.changed = access.forget
        return access, table

    def _tokens(self) -> "Tokens":
        # Imported only where tokens are accepted: cryptography takes long, and much memory.
        from registryd.auth import jwks, jwt

        auth, clock = self.settings.auth.jwt, self._clock
        source: jwks.TokenKeySource
        if auth.jwks_url is not None:
            # The operator's own address and not a client's: it may be on this machine.
            egress = Outbound(EgressPolicy(loopback=True))
            self._undo.append(egress.close)
            source = jwks.RemoteKeys(
                egress, auth.jwks_url, self.metrics, clock, interval=auth.refresh_interval
            )
        elif auth.jwks_file is not None:
            source = jwks.FileKeys(WatchedFile(auth.jwks_file, jwt.of_jwks))
        elif auth.public_key_file is not None:
            source = jwks.FileKeys(WatchedFile(auth.public_key_file, jwt.of_pem))
        else:
            assert auth.secret is not None  # noqa: S101  the settings have seen to it
            source = jwks.FixedKeys(jwt.of_secret(auth.secret.get_secret_value()))
        rules = jwt.JwtRules(
            issuer=auth.issuer or "",
            audience=auth.audience,
            algorithms=auth.algorithms,
            role_claim=auth.role_claim,
            prefixes_claim=auth.prefixes_claim,
            leeway=auth.leeway,
        )
        return jwks.Tokens(source, rules, clock)

    async def _start_access(self) -> None:
        """Has the keys before the first request comes, and keeps them up to date."""
        auth = self.settings.auth
        if auth.mode == "none":
            return
        loops, tokens = self.supervisor, self.tokens
        await self.keyring.load()
        loops.start("keys", self.keyring.turn, pause=LOOK_EVERY.total_seconds())
        loops.start("key uses", self.keyring.write_uses, pause=USES_EVERY.total_seconds())
        loops.start("access record", self.journal.turn, pause=WRITE_EVERY.total_seconds())
        if tokens is not None:
            await tokens.source.load()
            loops.start("token keys", tokens.source.turn, pause=LOOK_EVERY.total_seconds())
        if not (self.keyring.known or tokens or auth.certificates or auth.anonymous.role):
            log.warning(
                "nobody can enter yet: auth.mode is required and there is no API key",
                make_one="registryd keys create --role admin",
            )

    async def _end_access(self) -> None:
        """Writes what was noted last; comes after the loops have stopped."""
        if self.settings.auth.mode != "none":
            await self.journal.turn()
            await self.keyring.write_uses()

    def _wire_health(self, reads: Reads, registrar: Registrar) -> list[Route]:
        settings = self.settings.health
        self.checker = Checker(
            InstanceChecks(self.store, self._clock, settings.features),
            probes(self.outbound) if self._probes is None else self._probes,
            self.metrics,
            Limits(settings.concurrency, settings.concurrency_per_host),
            dice=random.SystemRandom(),
        )
        return HealthRoutes(self.view, reads, registrar, self.store, self.checker).table()

    def _wire_streams(
        self, reads: Reads, stream: ChangeStream, sync: ViewSync, keys: Keys
    ) -> list[Route]:
        settings, metrics, view = self.settings.events, self.metrics, self.view
        self.broadcast = Broadcast(metrics, most=settings.max_streams, limit=settings.buffer_bytes)
        recent = Recent(view, Ring())
        watches = Watches(view, recent, self.broadcast)
        streams = EventStreams(view, recent, stream, self.broadcast, self._clock, self._source)
        propagation = Propagation(self._clock, metrics, self.broadcast)
        sync.listeners = [recent, watches, streams, propagation]
        self.broadcast.written_out = propagation.told
        self.follower.trouble = streams.trouble
        routes = EventRoutes(view, reads, self.follower, self.broadcast, watches, streams)
        routes.describe = cache(lambda: codec.dumps(asyncapi_document(keys.prefix)))
        return routes.table()

    def _wire_webhooks(
        self, reads: Reads, connection: Connection, scripts: dict[str, Script], keys: Keys
    ) -> list[Route]:
        metrics, clock = self.metrics, self._clock
        store = WebhookStore(
            ScriptRunner(connection, scripts, keys.events, metrics), connection, keys
        )
        self.courier = Courier(
            store,
            notifiers(self.outbound, clock)["webhook"],
            metrics,
            clock,
            random.SystemRandom(),
            policy=lambda: policy_of(self.settings),
        )
        self.fanout = Fanout(
            store,
            metrics,
            clock,
            source=self._source,
            news=self.follower.advanced,
            queued=self.courier.hear,
        )
        history = HistoryRoutes(
            store, self.view, reads, paused=self._paused, last_error=self._last_error
        )
        webhooks = WebhookRoutes(store, self.courier, clock, source=self._source)
        return [*history.table(), *webhooks.table()]

    def _source(self) -> str:
        return source_of(self.store.deployment or "")

    async def _paused(self) -> bool:
        return not await self.store.monitoring()

    async def _last_error(self, instance: Instance) -> str | None:
        [vitals] = await self.store.vitals([instance.id])
        return last_error(vitals)


def connection_to(url: str, redis: Redis, metrics: Metrics) -> Connection:
    """Clients of the store at `url`, as the settings want them."""
    return Connection(
        url,
        metrics,
        password=redis.password.get_secret_value() if redis.password else None,
        connect_timeout=redis.connect_timeout,
        command_timeout=redis.command_timeout,
        tls=Trust(
            redis.tls.ca_file, redis.tls.cert_file, redis.tls.key_file, redis.tls.check_hostname
        ),
        max_connections=redis.max_connections,
    )


def certificate_rules(auth: Auth) -> list[CertificateRule]:
    """Raises StartupRefused for what names no certificate."""
    try:
        return [
            CertificateRule(
                ROLES[rule.role],
                certificates.subject(rule.subject) if rule.subject else frozenset(),
                certificates.san(rule.san) if rule.san else None,
                checked_prefixes(rule.prefixes),
            )
            for rule in auth.certificates
        ]
    except ValueError as error:
        raise StartupRefused(f"auth.certificates: {error}") from None


def event_scripts_for(info: Mapping[str, object]) -> dict[str, Script]:
    return load(files("registryd.events") / "lua", flags=flagged(info))


def policy_of(settings: Settings) -> Policy:
    hooks = settings.webhooks
    return Policy(hooks.timeout, hooks.attempts, hooks.retry_base, hooks.retry_cap)


def tls_files_of(settings: Settings) -> TlsFiles | None:
    tls = settings.server.tls
    if tls.cert_file is None:
        return None
    return TlsFiles(
        tls.cert_file, tls.key_file, tls.client_ca_file, tls.client_certificates, tls.min_version
    )


def origins_of(settings: Settings) -> Origins:
    server = settings.server
    hosts: frozenset[str] | None = None
    if server.allowed_hosts and "*" not in server.allowed_hosts:
        hosts = LOCAL_HOSTS.union(server.allowed_hosts)
    elif not server.allowed_hosts and all(one.is_loopback for one in server.listen):
        hosts = LOCAL_HOSTS.union(host_of(str(one)) for one in server.listen)
    return Origins(hosts, frozenset(server.cors.origins))


def proxies_of(settings: Settings) -> Proxies | None:
    trusted = settings.server.trusted_proxies
    return Proxies(map(ipaddress.ip_network, trusted)) if trusted else None


def limits_of(settings: Settings) -> UseLimits:
    limits = settings.limits
    caller, address = limits.per_caller, limits.per_address
    return UseLimits(
        caller=Allowance(caller.reads, caller.writes, caller.streams),
        address=Allowance(address.reads, address.writes, address.streams),
        burst_seconds=limits.burst.total_seconds(),
        denied_per_minute=address.denied_per_minute,
        connections=limits.connections,
        connections_per_address=address.connections,
    )


def guard_of(settings: Settings) -> Guard | None:
    guard = settings.registry.guard
    return Guard(guard.min_due, guard.fraction, guard.max_hold) if guard.enabled else None


def quota_of(settings: Settings) -> Quota:
    limits = settings.registry.limits
    return Quota(
        limits.services,
        limits.services_per_caller,
        limits.instances,
        limits.instances_per_service,
    )


def openapi_document() -> dict[str, Any]:
    """The description of the whole HTTP interface, without running anything."""
    daemon = Daemon(Settings())
    daemon.wire(Connection("redis://localhost", daemon.metrics), {})
    return daemon.describe()


def asyncapi_document(prefix: str) -> dict[str, Any]:
    """The description of all events, for a store whose keys start with `prefix`."""
    return asyncapi.document(title=TITLE, version=__version__, prefix=prefix)
