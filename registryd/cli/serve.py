"""Runs the daemon in the foreground: event loop, signals, and what it says when it has started."""

import asyncio
import ctypes
import gc
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Final

import structlog

from registryd import __version__
from registryd.app import Daemon
from registryd.config import ConfigError, Settings, load, reload_diff
from registryd.kit import logs

log = structlog.get_logger(__name__)

Flags = Mapping[str, object]
Environ = Mapping[str, str]
Reread = Callable[[], Settings]

# malloc.h
M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
LARGEST_KEPT: Final = 32 * 1024 * 1024

NOTICE: Final = timedelta(seconds=1)
"""How long after SIGTERM new connections are still served, while load balancers and clients learn of
it: whoever comes in that moment would otherwise be refused."""


def run(config: Path | None, flags: Flags, environ: Environ) -> None:
    """Serves until SIGTERM or SIGINT. Raises StartupRefused."""
    settings = load(config, flags=flags, environ=environ)
    logs.configure(settings.logging.level, settings.logging.format)

    def reread() -> Settings:
        return load(config, flags=flags, environ=environ)

    keep_large_blocks()
    _runner().run(_serve(settings, reread))


def keep_large_blocks() -> None:
    """Tells glibc to keep freed blocks of up to 32 MiB. Else it maps and unmaps memory for every long
    list that is answered, and the kernel clears its pages each time: half the cost of such an answer."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_KEPT)


def _runner() -> asyncio.Runner:
    if sys.platform == "win32":
        return asyncio.Runner()
    import uvloop

    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


async def _serve(settings: Settings, reread: Reread) -> None:
    loop = asyncio.get_running_loop()
    told: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.put_nowait, number)
    loop.add_signal_handler(signal.SIGHUP, log.warning, "still starting, nothing to reload yet")
    daemon = Daemon(settings)
    start = asyncio.create_task(daemon.start())
    end = asyncio.create_task(told.get())
    await asyncio.wait({start, end}, return_when=asyncio.FIRST_COMPLETED)
    if not start.done():
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)
        return
    start.result()
    # What was loaded stays: the collector need not walk it again and again, 2 ms for each 1 000 instances.
    gc.collect()
    gc.freeze()
    loop.add_signal_handler(signal.SIGHUP, lambda: reload(daemon, reread))
    if sys.stderr.isatty():
        sys.stderr.write(banner(daemon))
    number = await end
    log.info("stopping")
    daemon.drain()
    if number == signal.SIGTERM:  # who sits at a terminal waits for nobody to look elsewhere
        notice = min(NOTICE, settings.server.shutdown_grace)
        await asyncio.sleep(notice.total_seconds())
    await daemon.stop()
    log.info("stopped")


def reload(daemon: Daemon, reread: Reread) -> None:
    """Applies what can change while running; tells what needs a restart; keeps all on a mistake."""
    try:
        settings = reread()
    except ConfigError as error:
        log.warning(
            "configuration not reloaded, the one in use stays", problems=list(error.problems)
        )
        return
    reloadable, restart = reload_diff(daemon.settings, settings)
    if restart:
        log.warning("restart needed for these settings", settings=restart)
    logs.set_level(settings.logging.level)
    daemon.apply(settings)
    log.info("configuration reloaded", changed=reloadable)


BANNER: Final = """
  registryd {version}
  listens on   {urls}
  store        {store}

  try it:
    curl -X POST {url}/services -H 'Content-Type: application/json' \\
         -d '{{"name":"hello","endpoint":"http://127.0.0.1:9000","capabilities":["greeting"]}}'
    curl '{url}/services?capability=greeting'
    curl -X PUT {url}/services/hello/heartbeat

"""


def banner(daemon: Daemon) -> str:
    """What a person at a terminal wants to know first."""
    scheme = "http" if daemon.settings.server.tls.cert_file is None else "https"
    urls = [f"{scheme}://{_bracketed(host)}:{port}" for host, port in daemon.addresses]
    return BANNER.format(
        version=__version__, urls=", ".join(urls), store=daemon.store_address, url=urls[0]
    )


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
