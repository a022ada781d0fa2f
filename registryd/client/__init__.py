"""The SDK: registryd's API for services and their callers, with registrations that are not lost.

Loads nothing of the server, and aiohttp only when the first request is made.
"""

from registryd.client.client import RegistryClient
from registryd.client.identity import ServiceSettings, from_environment
from registryd.client.lifespan import RegisteredApp, registered, registered_aiohttp
from registryd.client.sync import SyncRegistryClient
from registryd.client.types import (
    Event,
    Found,
    NoneOffered,
    Strategy,
    Target,
    UnexpectedAnswer,
    Unreachable,
    Watched,
)

__all__ = [
    "Event",
    "Found",
    "NoneOffered",
    "RegisteredApp",
    "RegistryClient",
    "ServiceSettings",
    "Strategy",
    "SyncRegistryClient",
    "Target",
    "UnexpectedAnswer",
    "Unreachable",
    "Watched",
    "from_environment",
    "registered",
    "registered_aiohttp",
]
