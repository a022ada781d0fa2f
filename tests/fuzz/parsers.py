"""Everything that reads what strangers send, as functions of bytes, and what has to hold of each.

`examine` is the whole of it: no exception but our own errors (for the few pure parsers that know none,
ValueError), the same answer twice, and no more than SLOWEST of this process's own time. Hypothesis and
atheris only find the bytes.
"""

import hmac
import ipaddress
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import jwt as pyjwt
from credentials import AUDIENCE, ISSUER, MovedClock, ec_key, jwk, jwks
from multidict import CIMultiDict, CIMultiDictProxy

from registryd.app import Daemon
from registryd.auth import apikey, jwt
from registryd.auth.access import RequiredAccess
from registryd.auth.apikey import KeySet
from registryd.auth.jwks import FixedKeys, Tokens
from registryd.config import Settings
from registryd.errors import RegistrydError
from registryd.events.types import parse_position
from registryd.events.webhook_types import NewWebhook
from registryd.feed.revision import parse_revision
from registryd.kit.duration import duration_text, parse_duration
from registryd.kit.logs import mask_secrets
from registryd.metrics import Metrics
from registryd.probing import conditions
from registryd.registry.bodies import parse, parse_beats, parse_registration
from registryd.registry.document import encode
from registryd.registry.expression import parse as parse_expression
from registryd.registry.listing import parse_page
from registryd.registry.query import FIELDS, parse_filters
from registryd.registry.reads import best_encoding
from registryd.registry.versions import minimum, parse_capability, parse_range
from registryd.storage.connection import Connection
from registryd.web import codec
from registryd.web.caller import Peer, Permission
from registryd.web.forwarded import Proxies
from registryd.web.origin import Origins
from registryd.web.router import Router
from registryd.web.shortcut import Framing, HeaderBlocks

SLOWEST: Final = 1.0
"""Seconds of processor time for one input of at most LONGEST: a hundred times what any needs, and far
less than what a parser that goes wrong takes."""
LONGEST: Final = 16 * 1024
"""Bytes: a head may have 8 KiB. What bodies may have beyond that the codec's own tests try."""

NOW: Final = datetime(2030, 1, 1, tzinfo=UTC)
SECRET: Final = "fuzzed-" * 6
KEY, HELD = apikey.make(Permission.ADMIN, (), name="", now=NOW, expires_at=None)
KEYS: Final = KeySet({HELD.id: HELD})
TOKEN_KEYS: Final = (*jwt.of_secret(SECRET), *jwt.of_jwks(jwks(jwk(ec_key(), kid="one"))))
RULES: Final = jwt.JwtRules(
    issuer=ISSUER,
    audience=(AUDIENCE,),
    algorithms=("HS256", "ES256"),
    role_claim="realm.roles",
    prefixes_claim="prefixes",
)
METRICS: Final = Metrics()
CLAIMS: Final = (
    b'{"iss":"https://id.example","aud":["registryd"],"sub":"ci","exp":1.9e9,"nbf":1,"iat":1,'
    b'"realm":{"roles":["writer"]},"prefixes":["a-",""]}'
)
DOCUMENT: Final[dict[str, Any]] = {
    "name": "chat",
    "weight": 7,
    "version": "1.2.3",
    "metadata": {"tags": ["a", "b"], "deep": [{"name": "x", "n": [1, 2.5, None, True]}]},
    "capabilities": [{"name": "c", "version": "2.0.0"}],
}


@dataclass(frozen=True)
class Parser:
    """`seeds` are inputs that go far; a token of `words` is worth trying anywhere."""

    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...] = ()
    pure: bool = False
    """It has no errors of ours to raise, and says ValueError."""


def examine(parser: Parser, data: bytes) -> str:
    """What the parser makes of `data`, after checking what has to hold. Raises AssertionError."""
    began = time.process_time()
    first, second = _outcome(parser, data), _outcome(parser, data)
    spent = (time.process_time() - began) / 2
    assert first == second, f"two answers: {first} and {second}"
    assert spent < SLOWEST, f"took {spent:.2f} s"
    return first


def _outcome(parser: Parser, data: bytes) -> str:
    expected = ValueError if parser.pure else RegistrydError
    try:
        return f"read: {parser.read(data)!r}"
    except expected as error:
        # A UnicodeError is a ValueError too, and no sentence for people.
        if isinstance(error, UnicodeError) or getattr(error, "code", "") == "internal":
            raise AssertionError(f"no refusal: {error!r}") from error
        return f"refused: {error!r} {getattr(error, 'errors', '')}"


# --- how bytes get to each parser


def _text(data: bytes) -> str:
    """As a query parameter or a field of a body has it: any characters."""
    return data.decode("utf-8", "replace")


def _header(data: bytes) -> str:
    """As aiohttp hands a header on: bytes that are no UTF-8 become half surrogates."""
    return data.decode("utf-8", "surrogateescape")


def _fields(**values: str) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(CIMultiDict({k.replace("_", "-"): v for k, v in values.items()}))


def _filter(data: bytes) -> object:
    expression = parse_expression(_text(data), roots=FIELDS)
    return str(expression), expression.matches(DOCUMENT)


def _ranges(data: bytes) -> object:
    found = parse_range(_text(data))
    return found, [found.contains(one) for one in ("0.0.0", "1.2.3", "2.0.0-rc.1", "x", "9" * 300)]


def _duration(data: bytes) -> object:
    duration = parse_duration(_text(data))
    return duration, duration_text(duration)


def _page(data: bytes) -> object:
    # The cursor of whatever list: each kind of order reads it differently.
    sort, _, cursor = _text(data).partition(" ")
    return parse_page({"cursor": cursor, "sort": sort, "view": "instances"})


def _query(data: bytes) -> object:
    query = codec.decode_query(_header(data))
    return sorted(query.items()), parse_filters({name: codec.single(query, name) for name in query})


def _block(data: bytes) -> object:
    """The fast lane's own reading of a head, and of where the next one begins."""
    blocks = HeaderBlocks(Origins(frozenset({"localhost"})).unremarkable)
    framing = Framing(blocks)
    framing.follow(b"GET / HTTP/1.1" + data)
    first = blocks.read(data), blocks.body_length(data), framing.clean
    assert blocks.read(data) == first[0]
    return first


def _forwarded(data: bytes) -> object:
    listed, _, forwarded = data.partition(b"\n")
    proxies = Proxies([ipaddress.ip_network("10.0.0.0/8")])
    headers = {"X-Forwarded-For": _header(listed), "Forwarded": _header(forwarded)}
    return proxies.client(Peer("10.0.0.1"), _fields(**{k: v for k, v in headers.items() if v}))


def _registration(data: bytes) -> object:
    name, endpoint, instance, rest = (*data.split(b"\n", 3), b"", b"", b"")[:4]
    body = {"name": _text(name), "endpoint": _text(endpoint), "version": _text(rest)}
    if instance:
        body["instanceId"] = _text(instance)
    registration = parse_registration(body)
    return registration, encode(registration)


def _condition(data: bytes) -> object:
    facts = conditions.Facts(response_time_ms=3.0, status=200, text="{}", document=DOCUMENT)
    condition = conditions.parse(_text(data))
    return condition, condition.holds(facts)


def _claims(data: bytes) -> object:
    """Any claims, well signed."""
    token = pyjwt.PyJWS().encode(data, SECRET.encode(), "HS256")
    return jwt.verify(token, TOKEN_KEYS, RULES, NOW)


def _token_header(data: bytes) -> object:
    """Any header of a token before good claims."""
    signed = b".".join(urlsafe_b64encode(part).rstrip(b"=") for part in (data, CLAIMS))
    signature = urlsafe_b64encode(hmac.digest(SECRET.encode(), signed, "sha256")).rstrip(b"=")
    return jwt.verify((signed + b"." + signature).decode(), TOKEN_KEYS, RULES, NOW)


class _Ring:
    """A keyring of one key."""

    known = KEYS

    def __init__(self) -> None:
        self.used: set[str] = set()

    async def look(self) -> None:
        """There are no others."""


def _authorization(data: bytes) -> object:
    """Both headers of a credential, as a request brings them, all the way to a caller."""
    authorization, _, key = data.partition(b"\n")
    headers = _fields(Authorization=_header(authorization))
    if key:
        headers = _fields(Authorization=_header(authorization), X_API_Key=_header(key))
    ring: Any = _Ring()
    unused: Any = None
    clock: Any = MovedClock()
    tokens = Tokens(FixedKeys(TOKEN_KEYS), RULES, clock)
    access = RequiredAccess(ring, unused, METRICS, clock, tokens=tokens)
    caller = _at_once(access.identify(headers, Peer("10.0.0.7")))
    assert access.known(headers, Peer("10.0.0.7")) == caller
    return caller


def _at_once(asked: Coroutine[Any, Any, object]) -> object:
    """What a coroutine that has nothing to wait for returns."""
    try:
        asked.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")


def _router() -> Router:
    daemon = Daemon(Settings())
    daemon.wire(Connection("redis://localhost", daemon.metrics), {})
    return Router(daemon.table)


ROUTER: Final = _router()


def _path(data: bytes) -> object:
    method, _, path = data.partition(b" ")
    route, params = ROUTER.match(_header(method), "/" + _header(path))
    return route.operation_id, params


GOOD_TOKEN: Final = pyjwt.PyJWS().encode(CLAIMS, SECRET.encode(), "HS256").encode()

PARSERS: Final[Mapping[str, Parser]] = {
    "name": Parser(
        lambda data: parse_filters({"name": _text(data)}),
        (b"^chat-[0-9]+$", b"(a|b)*c{2,3}?", rb"\pL[[:alpha:]]\Qx\E", b"(?i:x)(?P<n>y)"),
        (b"(", b")", b"{1000}", b"(?", b"\\", b"[^", b"\xed\xa0\x80", b"\0"),
    ),
    "registration": Parser(
        _registration,
        (
            b"chat\nhttp://10.0.0.1:8080/x?y=z\na:1~b\n1.2.3",
            b"chat\nhttps://[fe80::1%25eth0]:443\n\n1",
            b"a.b\nhttp://u:p/w@h:99999\n",
            "ä\nhttp://ⓔx.example:८\n".encode(),
        ),
        (b"\n", b"[", b"]", b"@", b":", b"%", b"://", b"\xef\xbc\x8f", b"\xe2\x84\x80"),
    ),
    "path": Parser(
        _path,
        (
            b"GET services/chat/instances/a:1/health",
            b"PUT api/v1/registry/services/chat/heartbeat",
            b"DELETE api/v1/webhooks/wh_0123456789abcdef",
            b"OPTIONS *",
        ),
        (b"/", b"%2f", b"%2E%2e", b"..", b"%00", b"%", b"\xff", b"//", b"{", b"?"),
    ),
    "query": Parser(
        _query,
        (
            b"name=x&capability=chat@%3E=2;%3C3&tags=a,b&health=healthy&version=^1.2",
            b"filter=name+%3D%3D+%22x%22&minVersion=1&environment=prod&zone=%C3%A4",
        ),
        (b"&", b"=", b"%", b"%C3", b"%00", b"+", b"tags=", b"filter=", b"capability=", b"\xff"),
    ),
    "filter": Parser(
        _filter,
        (
            b'metadata.tags contains "a" and not (weight == 7 or "x" in name)',
            b'metadata.deep.0.n.1 == 2.5 and version matches "^1" or health is not empty',
            b'metadata["a-b"].c != `raw` and "/metadata/deep/0" is empty',
        ),
        (b"not ", b"((((", b" and ", b" or ", b"\\u00e9", b"\\U0010ffff", b'"', b"`", b"9" * 400),
    ),
    "cursor": Parser(
        _page,
        tuple(
            b"%b %b" % (sort, urlsafe_b64encode(text).rstrip(b"="))
            for sort, text in (
                (b"name", b'["instances","name","","chat","a"]'),
                (b"-version", b'["instances","-version","1.10.0","chat","a"]'),
                (b"health", b'["instances","health","healthy","chat","a"]'),
            )
        ),
        (b"W1tb", b"-", b"_", b"=", b" ", b"name", b"bnVsbA", b"OTk5OTk5OTk5OTk5"),
    ),
    "duration": Parser(
        _duration, (b"1h30m", b"200ms", b"1.5d", b"0.000000001s"), (b"9" * 12, b"d", b"."), True
    ),
    "version range": Parser(
        _ranges,
        (b">=1.2,<2", b"^0.0", b"~=1.2.3-rc.1+b.2", b"1.x", b"2024-05-beta", b"=v01.02"),
        (b",", b"^", b"~", b"*", b"9" * 60, b"-", b"+", b".0", b"x", b"\xd9\xa3"),
    ),
    "capability": Parser(
        lambda data: (parse_capability(_text(data)), minimum(_text(data).partition("@")[2])),
        (b"chat@>=2;<3,embeddings", b"chat@1.2", b"a@*"),
        (b"@", b",", b";", b">=", b"^", b"9" * 60),
    ),
    "revision": Parser(
        lambda data: parse_revision(_text(data)), (b"1700000000000-42", b"0-0"), (b"-", b"9" * 20)
    ),
    "position": Parser(
        lambda data: parse_position(_text(data), what="since"),
        (b"1700000000000-42.3", b"0-0"),
        (b"-", b".", b"9" * 20),
    ),
    "header block": Parser(
        _block,
        (
            b"\r\nHost: localhost\r\nAccept: */*\r\nX-Request-ID: a-1\r\n\r\n",
            b"\r\nhost:\tlocalhost \r\nContent-Length: 12\r\nPrefer: wait=30\r\n\r\n",
            b"\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
        (b"\r\n", b"\n", b":", b"\0", b"\xff", b"X-Request-ID: b", b"\r\n\r\n", b"Host: x", b"\t"),
    ),
    "forwarded": Parser(
        _forwarded,
        (
            b"6.6.6.6, 203.0.113.7 , 10.9.9.9\n",
            b'\nFor="[2001:db8::7]:80";proto=https;by=10.0.0.1, for=10.1.1.1',
            b"1.2.3.4:80\nfor=1.2.3.4",
            b"::ffff:1.2.3.4%eth0\n",
        ),
        (b",", b";", b'"', b"for=", b"[", b"::", b"\\", b"unknown", b"_hidden", b"\xff", b"0x7f.1"),
    ),
    "api key": Parser(
        lambda data: KEYS.find(_header(data)),
        (KEY.encode(), KEY.encode()[:-1], b"rgd_" + b"a" * 10, b"somebody-elses-key"),
        (b"rgd_", b"_", b"\xff", b"\xd9\xa3", b"\xf0\x9f\x98\x80"),
    ),
    "authorization": Parser(
        _authorization,
        (
            b"Bearer " + KEY.encode(),
            b"Bearer " + GOOD_TOKEN,
            b"Bearer " + GOOD_TOKEN + b"\n" + KEY.encode(),
            b"Basic aHVudGVyMg==",
        ),
        (b"Bearer ", b"bearer\t", b" ", b".", b"\xff", b"\xc2\xa0", b"\n", b"eyJ", b"rgd_"),
    ),
    "token": Parser(
        lambda data: jwt.verify(_header(data), TOKEN_KEYS, RULES, NOW),
        (GOOD_TOKEN, b"eyJhbGciOiJub25lIn0.e30.", b"e30.e30.e30"),
        (b".", b"=", b"\xff", b"eyJhbGciOiJIUzI1NiJ9", b"W1tbW1tb", b"bnVsbA"),
    ),
    "token header": Parser(
        _token_header,
        (
            b'{"alg":"HS256","kid":"one"}',
            b'{"alg":"ES256","kid":7,"crit":["b64"],"b64":false}',
            b'{"alg":["HS256"],"typ":"JWT","jku":"http://x"}',
        ),
        (b'"kid":', b'"alg":', b'"none"', b"null", b"[" * 3000, b'"crit":', b"\xff", b"1e999"),
    ),
    "claims": Parser(
        _claims,
        (
            CLAIMS,
            CLAIMS.replace(b"1.9e9", b"NaN"),
            CLAIMS.replace(b"1.9e9", b"9" * 400),
            CLAIMS.replace(b'["writer"]', b'{"a":[1]}'),
        ),
        (b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"null", b"[" * 3000, b'"\\ud800"', b"true"),
    ),
    "json": Parser(
        codec.loads,
        (b'{"a":[1,2.5e3,null,true,"\\ud83d\\ude00"]}', b'{"a":1,"a":2}', b"[" * 70 + b"]" * 70),
        (b"[" * 200, b'{"":' * 60, b"1e999", b"NaN", b"\xef\xbb\xbf", b"\\ud800", b"9" * 301),
    ),
    "heartbeats": Parser(
        parse_beats,
        (
            b'{"heartbeats":[{"name":"chat","instanceId":"a:1"}]}',
            b'{"heartbeats": [{"name": "chat", "instanceId": "a", "incarnation": "x"}]}',
        ),
        (b'{"name":"b","instanceId":"c"},', b"]}", b",", b'"incarnation":', b"\xff", b" "),
    ),
    "condition": Parser(
        _condition,
        (
            b"[STATUS] == any(200, 429)",
            b"len([BODY].metadata.deep[0].n) < 5",
            b"[BODY].name == pat(*ha*)",
            b"has([BODY].x) == false",
            b"[CERTIFICATE_EXPIRATION] > 48h",
        ),
        (b"[BODY]", b".x", b"[9]", b"any(", b"pat(", b"len(", b")", b" == ", b"9" * 400, b"*" * 99),
        True,
    ),
    "webhook": Parser(
        lambda data: parse(NewWebhook, codec.loads(data)),
        (
            b'{"url":"https://h/x","types":["service:*"],"services":["a*"]}',
            b'{"url":"https://h","types":["*"],"secret":"whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"}',
        ),
        (b'"types":', b"whsec_", b"*", b"http://[", b":", b"@", b'"enabled":1', b"null"),
    ),
    "accepted encodings": Parser(
        lambda data: best_encoding(_header(data)), (b"gzip;q=0.0, zstd;q=1", b"*"), (b";q=0", b",")
    ),
    "log line": Parser(
        lambda data: mask_secrets(_header(data)),
        (
            b"redis://u:p@h token=x Bearer abcdefgh eyJhbGciOiJ.e30.x rgd_0123456789_" + b"a" * 49,
            b"{'password': 'x', \"api_key\": \"y\"} unix://a@b@/c",
        ),
        (b"@", b"://", b"password=", b"token", b'": "', b"eyJ" * 20, b"a_" * 40, b"a" * 64),
    ),
}
