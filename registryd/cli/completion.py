"""What the shell offers at TAB: names that the registry knows. Asks shortly, with what Python brings (the
SDK would take longer to load than the answer takes), and keeps silent whatever goes wrong."""

import json
import os
import ssl
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import typer

PATIENCE: Final = 1.0
"""Seconds: somebody waits with a finger on the key."""
OFFERED: Final = 200
PREFIX: Final = "/api/v1/registry"


def services(context: typer.Context, incomplete: str) -> list[str]:
    found = _asked(context, "/services", fields="name", limit=str(10_000), sort="name")
    return _begun([one.get("name") for one in found.get("services", ())], incomplete)


def instances(context: typer.Context, incomplete: str) -> list[str]:
    """Of the service that stands before it."""
    name = context.params.get("name")
    if not isinstance(name, str):
        return []
    found = _asked(context, f"/services/{quote(name, safe='')}", view="instances")
    return _begun([one.get("instanceId") for one in found.get("", ())], incomplete)


def capabilities(context: typer.Context, incomplete: str) -> list[str]:
    found = _asked(context, "/capabilities", limit=str(10_000))
    return _begun([one.get("name") for one in found.get("capabilities", ())], incomplete)


def webhooks(context: typer.Context, incomplete: str) -> list[str]:
    found = _asked(context, "/webhooks", prefix="/api/v1")
    return _begun([one.get("id") for one in found.get("webhooks", ())], incomplete)


def _begun(names: Sequence[object], incomplete: str) -> list[str]:
    return [name for name in names if isinstance(name, str) and name.startswith(incomplete)][
        :OFFERED
    ]


def _asked(
    context: typer.Context, path: str, *, prefix: str = PREFIX, **query: str
) -> dict[str, Any]:
    """The answer as an object, a bare array under ""; empty when there is none."""
    given, environ = context.params, os.environ
    bases = given.get("url") or environ.get("REGISTRYD_URL") or environ.get("CONFIG_SERVICE_URL")
    base = urlsplit(str(bases or "http://127.0.0.1:8082").split(",")[0].strip())
    key_file = given.get("api_key_file")
    ca_file = given.get("ca_file") or environ.get("REGISTRYD_CA_FILE")
    connection: HTTPConnection | None = None
    try:
        key = given.get("api_key") or environ.get("REGISTRYD_API_KEY")
        if key_file:
            key = Path(key_file).read_text().strip()
        if base.scheme == "https":
            tls = ssl.create_default_context(cafile=ca_file)
            connection = HTTPSConnection(base.netloc, timeout=PATIENCE, context=tls)
        else:
            connection = HTTPConnection(base.netloc, timeout=PATIENCE)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        target = f"{base.path.rstrip('/')}{prefix}{path}?{urlencode(query)}"
        connection.request("GET", target, headers=headers)
        answer = connection.getresponse()
        if answer.status != 200:
            return {}
        found = json.loads(answer.read())
    except (OSError, ValueError, HTTPException):
        return {}
    finally:
        if connection is not None:
            connection.close()
    return found if isinstance(found, dict) else {"": found}
