"""A change of the stream as CloudEvents: the same bytes that the scripts publish on `ossa:events:<type>`.

`emit` and `cloud_event` in registry/lua/lib.lua compose them in the store; a test holds the two together.
Pure.
"""

import json
from dataclasses import dataclass
from typing import Final

from registryd.feed.stream import Change
from registryd.kit.clock import from_ms, rfc3339
from registryd.registry.document import Admin, Row, compose, effective_health
from registryd.registry.types import split_identity

HEALTH_CHANGED: Final = "service:health:changed"


@dataclass(frozen=True, slots=True)
class Event:
    """One CloudEvent. `subject` is `service/instance` and `service` its first part, both "" for an event
    of no single instance; `body` is the whole event as JSON."""

    id: str
    type: str
    subject: str
    service: str
    body: bytes


def source_of(deployment: str) -> str:
    return f"/registryd/{deployment}"


def events_of(change: Change, source: str) -> list[Event]:
    """The change's own event, `<epoch>-<rev>`, then those of the capabilities that the instance gained or
    lost with it, `<epoch>-<rev>.<n>`."""
    fields = change.fields
    kind = fields[b"type"].decode()
    at = str(change.at)
    time = rfc3339(from_ms(int(fields[b"ts"])))
    identity = fields[b"id"].decode()
    if not identity:
        data = b'{"reason":%b,"instances":%b}' % (_text(fields[b"reason"]), fields[b"ids"])
        return [_event(at, kind, "", source, time, data)]
    data, of_health = _data(identity, kind, fields)
    events = [_event(at, kind, identity, source, time, b"%b%b}" % (data, of_health))]
    if claims := fields.get(b"caps"):
        for number, (what, *claim) in enumerate(json.loads(claims), 1):
            capability = b"%b%b}" % (data, _capability(*claim))
            events.append(
                _event(f"{at}.{number}", f"capability:{what}", identity, source, time, capability)
            )
    return events


def cloud_event(
    event_id: str, kind: str, subject: str, source: str, time: str, data: bytes
) -> bytes:
    """The envelope around `data` (JSON); `subject` "" for none."""
    about = f'"subject":"{subject}",' if subject else ""
    head = (
        f'{{"specversion":"1.0","id":"{event_id}","source":"{source}","type":"{kind}",{about}'
        f'"time":"{time}","datacontenttype":"application/json","data":'
    )
    return b"%b%b}" % (head.encode(), data)


def _event(at: str, kind: str, identity: str, source: str, time: str, data: bytes) -> Event:
    service, instance_id = split_identity(identity) if identity else ("", "")
    subject = f"{service}/{instance_id}" if identity else ""
    return Event(at, kind, subject, service, cloud_event(at, kind, subject, source, time, data))


def _data(identity: str, kind: str, fields: dict[bytes, bytes]) -> tuple[bytes, bytes]:
    """The open object `{"service":…,"instance":…`, and what a change of health adds to it."""
    service, instance_id = split_identity(identity)
    reason = b',"reason":%b' % _text(fields[b"reason"]) if fields[b"reason"] else b""
    of_health = b""
    if fields[b"row"]:
        row, admin = Row.decode(fields[b"row"]), Admin.decode(fields[b"admin"])
        instance = compose(fields[b"doc"], row, admin, suspect=fields[b"suspect"] == b"1") + reason
        if kind == HEALTH_CHANGED:
            new = effective_health(row, admin).encode()
            of_health = b',"old":"%b","new":"%b"' % (fields[b"old"], new)
    else:
        instance = b'{"instanceId":"%b"%b}' % (instance_id.encode(), reason)
    return b'{"service":"%b","instance":%b' % (service.encode(), instance), of_health


def _capability(name: str, version: str, old: str | None = None) -> bytes:
    before = f',"oldVersion":"{old}"' if old is not None else ""
    return f',"capability":{{"name":"{name}","version":"{version}"{before}}}'.encode()


def _text(raw: bytes) -> bytes:
    """A JSON string as the store's cjson writes it, which escapes slashes and DEL too."""
    text = json.dumps(raw.decode("utf-8", "surrogateescape"), ensure_ascii=False)
    escaped = text.replace("/", "\\/").replace("\x7f", "\\u007f")
    return escaped.encode("utf-8", "surrogateescape")
