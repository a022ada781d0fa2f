import json
import traceback
from collections.abc import Iterator, Mapping
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import BaseModel, SecretStr
from pydantic.alias_generators import to_camel
from ruamel.yaml import YAML

from registryd.config import (
    RELOADABLE,
    Address,
    ConfigError,
    Settings,
    describe,
    load,
    reload_diff,
)
from registryd.errors import StartupRefused
from registryd.kit.duration import duration_text

EXAMPLE = Path(__file__).parent.parent / "config.example.yaml"
PLANTED = "hunter2-very-secret"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def load_text(config: Path, text: str, **environ: str) -> Settings:
    config.write_text(text)
    return load(config, flags={}, environ=environ)


def problems(
    config: Path | None,
    text: str = "",
    *,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> list[str]:
    """What is wrong, with the directory of the test left out of the places."""
    if config is not None:
        config.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(config, flags=flags or {}, environ=environ or {})
    directory = f"{config.parent}/" if config else ""
    return [problem.removeprefix(directory) for problem in caught.value.problems]


def from_env(**environ: str) -> Settings:
    return load(None, flags={}, environ=environ)


def keys_of(tree: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from keys_of(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


# --- the example file ---------------------------------------------------------------------------


def test_the_example_file_holds_the_defaults() -> None:
    assert load(EXAMPLE, flags={}, environ={}) == Settings()


def test_the_example_file_names_every_setting_and_no_other() -> None:
    written = set(keys_of(YAML(typ="safe", pure=True).load(EXAMPLE.read_text())))
    assert written == set(keys_of(describe(Settings())))


def test_the_example_file_marks_exactly_the_reloadable_settings() -> None:
    lines = EXAMPLE.read_text().splitlines()
    marked: list[str] = []
    sections: list[str] = []
    pending = False
    for line in lines:
        text = line.strip()
        if text.startswith("#"):
            pending = pending or (text.startswith("# [reload] ") and "marks" not in text)
        elif text:
            depth = (len(line) - len(line.lstrip())) // 2
            sections = [*sections[:depth], text.partition(":")[0]]
            if pending:
                marked.append(".".join(sections))
            pending = False
    assert sorted(marked) == sorted(RELOADABLE)


def test_every_setting_has_a_comment_in_the_example_file() -> None:
    lines = [line.strip() for line in EXAMPLE.read_text().splitlines()]
    described = {"commandTimeout", "enabled"}  # by the comment just above their neighbour
    for before, line in pairwise(lines):
        key = line.partition(":")[0]
        if line and not line.startswith("#") and not line.endswith(":") and key not in described:
            assert before.startswith("#"), key


# --- where values come from ---------------------------------------------------------------------


def test_without_any_source_the_defaults_hold() -> None:
    assert from_env() == Settings()


def test_an_empty_file_is_no_setting(config: Path) -> None:
    assert load_text(config, "# nothing\n") == Settings()


def test_keys_are_read_in_camel_case_and_in_snake_case(config: Path) -> None:
    settings = load_text(config, "redis: {keyPrefix: a}\nregistry: {default_ttl_seconds: 7}")
    assert (settings.redis.key_prefix, settings.registry.default_ttl_seconds) == ("a", 7)


def test_a_section_whose_keys_are_all_commented_out_is_not_set(config: Path) -> None:
    assert load_text(config, "redis:\n  # url: embedded\nview:\n") == Settings()


def test_a_byte_order_mark_is_no_part_of_the_first_key(config: Path) -> None:
    config.write_bytes(b"\xef\xbb\xbfdataDir: here\n")
    assert load(config, flags={}, environ={}).data_dir == Path("here")


@pytest.mark.parametrize(
    "variable",
    ["REGISTRYD_REDIS__KEY_PREFIX", "REGISTRYD_REDIS__KEYPREFIX", "registryd_redis__keyPrefix"],
)
def test_a_variable_is_found_whatever_its_case_and_underscores(variable: str) -> None:
    assert from_env(**{variable: "a"}).redis.key_prefix == "a"


def test_a_variable_reaches_a_section_inside_a_section() -> None:
    assert from_env(REGISTRYD_REGISTRY__GUARD__MIN_DUE="9").registry.guard.min_due == 9


def test_an_empty_variable_is_not_set() -> None:
    assert from_env(REGISTRYD_REDIS__URL="") == Settings()


def test_a_variable_holds_several_addresses_with_commas() -> None:
    settings = from_env(REGISTRYD_SERVER__LISTEN="127.0.0.1:1, [::1]:2")
    assert settings.server.listen == (Address("127.0.0.1", 1), Address("::1", 2))


def test_variables_of_others_and_of_the_command_line_are_left_alone() -> None:
    assert from_env(PATH="/bin", REGISTRYD_CONFIG="a.yaml", REGISTRYD_URL="http://x") == Settings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("REGISTRYD_SERVICE_HOST", "10.0.0.1"),
        ("REGISTRYD_SERVICE_PORT", "8082"),
        ("REGISTRYD_SERVICE_PORT_HTTP", "8082"),
        ("REGISTRYD_PORT", "tcp://10.0.0.1:8082"),
        ("REGISTRYD_PORT_8082_TCP", "tcp://10.0.0.1:8082"),
        ("REGISTRYD_PORT_8082_TCP_ADDR", "10.0.0.1"),
        ("REGISTRYD_REDIS_SERVICE_HOST", "10.0.0.1"),
        ("REGISTRYD_REDIS_PORT", "tcp://10.0.0.1:6379"),
    ],
)
def test_the_service_links_of_kubernetes_are_no_settings(variable: str, value: str) -> None:
    assert from_env(**{variable: value}) == Settings()


def test_flags_win_over_environment_over_secrets_over_file(config: Path, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    config.write_text("redis: {keyPrefix: file, deployment: file, url: 'redis://file'}\ndataDir: f")
    for name in ("keyPrefix", "deployment", "url"):
        (secrets / f"redis.{name}").write_text("redis://secret" if name == "url" else "secret")
    environ = {
        "REGISTRYD_SECRETS_DIR": str(secrets),
        "REGISTRYD_REDIS__DEPLOYMENT": "env",
        "REGISTRYD_REDIS__URL": "redis://env",
    }
    settings = load(config, flags={"redis_url": "redis://flag"}, environ=environ)
    redis = settings.redis
    assert (redis.key_prefix, redis.deployment, redis.url) == ("secret", "env", "redis://flag")
    assert settings.data_dir == Path("f")


def test_a_flag_that_was_not_given_sets_nothing() -> None:
    assert load(None, flags={"data_dir": None, "port": None}, environ={}) == Settings()


@pytest.mark.parametrize("name", ["redis/password", "redis.password", "redis__password"])
def test_a_secret_file_is_found_under_each_of_its_names(tmp_path: Path, name: str) -> None:
    (tmp_path / "redis").mkdir()
    (tmp_path / name).write_text("pw\n")
    assert from_env(REGISTRYD_SECRETS_DIR=str(tmp_path)).redis.password == SecretStr("pw")


def secret_settings(section: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    """All settings that hold a secret or, as URLs do, may hold one."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from secret_settings(kind, f"{prefix}{name}.")
        elif "SecretStr" in str(kind) or name.endswith("url"):
            yield f"{prefix}{name}"


WITH_SECRET: Mapping[str, tuple[str, dict[str, str]]] = {
    "redis.password": (PLANTED, {"REGISTRYD_REDIS__URL": "redis://h"}),
    "redis.url": (f"redis://u:{PLANTED}@h", {}),
    "auth.jwt.secret": (
        PLANTED * 2,
        {
            "REGISTRYD_AUTH__JWT__ISSUER": "i",
            "REGISTRYD_AUTH__JWT__AUDIENCE": "a",
            "REGISTRYD_AUTH__JWT__ALGORITHMS": "HS256",
        },
    ),
    "auth.jwt.jwks_url": (
        f"https://u:{PLANTED}@h/keys",
        {"REGISTRYD_AUTH__JWT__ISSUER": "i", "REGISTRYD_AUTH__JWT__AUDIENCE": "a"},
    ),
}
"""A value for each of them, and what has to be set beside it."""


@pytest.mark.parametrize("name", list(secret_settings()))
@pytest.mark.parametrize("source", ["environment", "directory"])
def test_every_secret_can_stay_out_of_the_file_and_is_shown_nowhere(
    tmp_path: Path, name: str, source: str
) -> None:
    value, environ = WITH_SECRET[name]
    if source == "environment":
        environ = environ | {f"REGISTRYD_{name.replace('.', '__').upper()}": value}
    else:
        file = tmp_path / name.replace(".", "/")
        file.parent.mkdir(parents=True)
        file.write_text(f"{value}\n")
        environ = environ | {"REGISTRYD_SECRETS_DIR": str(tmp_path)}
    settings = from_env(**environ)
    held: object = settings
    for part in name.split("."):
        held = getattr(held, part)
    assert (held.get_secret_value() if isinstance(held, SecretStr) else held) == value
    assert PLANTED not in f"{settings!r} {settings} {describe(settings)}"


def test_the_file_may_name_the_directory_of_secrets(config: Path, tmp_path: Path) -> None:
    (tmp_path / "redis.password").write_text("pw")
    assert load_text(config, f"secretsDir: {tmp_path}").redis.password == SecretStr("pw")


def test_secret_files_of_others_and_hidden_ones_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "kubernetes.io").mkdir()
    (tmp_path / "kubernetes.io" / "token").write_text("x")
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "redis.password").write_text("x")
    settings = from_env(REGISTRYD_SECRETS_DIR=str(tmp_path))
    assert settings.redis.password is None


def test_an_unknown_secret_of_one_of_our_sections_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "redis.pasword").write_text(PLANTED)
    assert problems(None, environ={"REGISTRYD_SECRETS_DIR": str(tmp_path)}) == [
        'secret redis.pasword: unknown setting; did you mean "password"?'
    ]


def test_a_directory_of_secrets_that_does_not_exist_is_a_problem(tmp_path: Path) -> None:
    (problem,) = problems(None, environ={"REGISTRYD_SECRETS_DIR": str(tmp_path / "no")})
    assert problem.endswith("/no: does not exist")


@pytest.mark.parametrize(
    ("flags", "listen"),
    [
        ({"port": 9000}, "[::1]:9000"),
        ({"host": "localhost"}, "localhost:1"),
        ({"host": "::1", "port": 9}, "[::1]:9"),
        ({"host": "127.0.0.9", "port": "0"}, "127.0.0.9:0"),
    ],
)
def test_host_and_port_replace_the_list_and_borrow_the_missing_half_from_its_first(
    config: Path, flags: Mapping[str, object], listen: str
) -> None:
    config.write_text("server: {listen: ['[::1]:1', 'localhost:2']}")
    settings = load(config, flags=flags, environ={})
    assert [str(address) for address in settings.server.listen] == [listen]


# --- problems and their places ------------------------------------------------------------------


def test_an_unknown_key_is_told_with_line_column_and_a_suggestion(config: Path) -> None:
    assert problems(config, "server:\n  prot: 1\n  reusePrt: true\nredis: {ulr: embedded}\n") == [
        'config.yaml:2:3: server.prot: unknown key; did you mean "listen"?',
        'config.yaml:3:3: server.reusePrt: unknown key; did you mean "reusePort"?',
        'config.yaml:4:9: redis.ulr: unknown key; did you mean "url"?',
    ]


def test_a_key_in_the_wrong_section_is_told_where_it_belongs(config: Path) -> None:
    assert problems(config, "keyPrefix: a\nport: 1\n") == [
        'config.yaml:1:1: keyPrefix: unknown key; did you mean "redis.keyPrefix"?',
        'config.yaml:2:1: port: unknown key; did you mean "server.listen"?',
    ]


def test_a_key_like_no_other_is_answered_with_those_that_exist(config: Path) -> None:
    assert problems(config, "auth: {zzz: 1}") == [
        "config.yaml:1:8: auth.zzz: unknown key; known here: mode, insecure, keysFile, anonymous, jwt, "
        "certificates"
    ]


def test_a_duplicate_key_is_told_with_its_place(config: Path) -> None:
    assert problems(config, f"redis:\n  password: {PLANTED}\n  password: b\n") == [
        "config.yaml:3:3: password: duplicate key; it stands here twice"
    ]


def test_one_key_in_two_spellings_is_a_duplicate(config: Path) -> None:
    assert problems(config, "redis:\n  keyPrefix: a\n  key_prefix: b\n") == [
        "config.yaml:3:3: redis.keyPrefix: stands here twice, in two spellings"
    ]


def test_a_wrong_type_is_told_with_its_place(config: Path) -> None:
    assert problems(config, "registry:\n  defaultTtlSeconds: soon\n") == [
        "config.yaml:2:3: registry.defaultTtlSeconds: Input should be a valid integer, "
        "unable to parse string as an integer"
    ]


def test_a_wrong_item_of_a_list_is_told_with_its_own_place(config: Path) -> None:
    (problem,) = problems(config, "server:\n  listen:\n    - 127.0.0.1:1\n    - nowhere\n")
    assert problem.startswith("config.yaml:4:7: server.listen.1: not host:port; write")


def test_a_value_where_a_section_belongs_is_told_its_keys(config: Path) -> None:
    assert problems(config, "auth: none") == [
        "config.yaml:1:1: auth: must hold keys: mode, insecure, keysFile, anonymous, jwt, certificates"
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "a: [\n",
            "config.yaml:2:1: is not YAML: expected the node content, but found '<stream end>'",
        ),
        ("just words", "config.yaml:1:1: must hold settings, as `key: value` lines"),
        ("a: \x07", "config.yaml: is not YAML: it holds a character that YAML does not allow"),
    ],
)
def test_a_file_that_is_no_mapping_is_told_so(config: Path, text: str, problem: str) -> None:
    assert problems(config, text) == [problem]


def test_a_file_that_is_not_utf8_is_told_so(config: Path) -> None:
    config.write_bytes(b"dataDir: \xff")
    with pytest.raises(ConfigError, match="is not UTF-8 text: wrong byte at offset 9"):
        load(config, flags={}, environ={})


def test_a_missing_file_is_told_so(config: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        load(config, flags={}, environ={})


@pytest.mark.parametrize(
    ("variable", "suggestion"),
    [
        ("REGISTRYD_SERVER__PROT", "REGISTRYD_SERVER__LISTEN"),
        ("REGISTRYD_PORT", "REGISTRYD_SERVER__LISTEN"),
        ("REGISTRYD_REDIS_URL", "REGISTRYD_REDIS__URL"),
        ("REGISTRYD_REGISTRY__GARD__ENABLED", "REGISTRYD_REGISTRY__GUARD__ENABLED"),
    ],
)
def test_an_unknown_variable_is_told_with_a_suggestion(variable: str, suggestion: str) -> None:
    assert problems(None, environ={variable: "1"}) == [
        f"environment {variable}: unknown setting; did you mean {suggestion}?"
    ]


def test_a_wrong_variable_is_told_by_its_name() -> None:
    (problem,) = problems(None, environ={"REGISTRYD_VIEW__MAX_STALE": "long"})
    assert problem.startswith(
        "environment REGISTRYD_VIEW__MAX_STALE: view.maxStale: not a duration"
    )


def test_one_setting_in_two_variables_is_a_problem() -> None:
    environ = {"REGISTRYD_REDIS__KEYPREFIX": "a", "REGISTRYD_REDIS__KEY_PREFIX": "b"}
    assert problems(None, environ=environ) == [
        "environment REGISTRYD_REDIS__KEY_PREFIX: sets the same as "
        "environment REGISTRYD_REDIS__KEYPREFIX"
    ]


def test_a_wrong_flag_is_told_by_its_name() -> None:
    assert problems(None, flags={"port": 70000}) == [
        "--port: server.listen: 70000 is not a port; the highest is 65535"
    ]


def test_the_place_is_that_of_the_value_which_won(config: Path) -> None:
    text = "server: {listen: ['127.0.0.1:1', '127.0.0.1:2']}"
    (problem,) = problems(config, text, environ={"REGISTRYD_SERVER__LISTEN": "127.0.0.1:1,x"})
    assert problem.startswith("environment REGISTRYD_SERVER__LISTEN: ")


def test_every_problem_of_every_source_is_told_at_once(config: Path) -> None:
    text = "server: {prot: 1}\nlogging: {level: loud}\nview: {snapshotChunk: 0}"
    environ = {"REGISTRYD_NO__SUCH": "1", "REGISTRYD_AUTH__INSECURE": "perhaps"}
    assert len(problems(config, text, environ=environ, flags={"redis_url": "http://x"})) == 6


def test_a_configuration_error_refuses_the_start_with_a_line_for_each_problem() -> None:
    error = ConfigError(["a: 1", "b: 2"])
    assert isinstance(error, StartupRefused)
    assert (error.detail, error.problems) == ("a: 1\nb: 2", ("a: 1", "b: 2"))


@pytest.mark.parametrize(
    "text",
    [
        f"redis: {{url: 'redis://u:{PLANTED}@h:port/0'}}",
        f"redis: {{url: 'redis://h:{PLANTED}'}}",
        f"redis: {{url: 'postgres://u:{PLANTED}@h'}}",
        f"redis: {{url: 'redis://:{PLANTED}@'}}",
        f"redis: {{url: 'redis+sentinel://u:{PLANTED}@h'}}",
        f"redis: {{password: '{PLANTED}', url: 'redis://u:{PLANTED}@h'}}",
        f"redis: {{password: ['{PLANTED}']}}",
        f"redis: {{passwrod: '{PLANTED}'}}",
        f"redis: 'redis://u:{PLANTED}@h'",
        f"redis: {{password: {PLANTED}, password: {PLANTED}}}",
        f"redis: {{password: *{PLANTED}}}",
        f"redis: {{password: !{PLANTED} x, a: }}",
        f"redis: {{password: '{PLANTED}\n",
        f"redis: {{password: {PLANTED}, url: nowhere}}",
        f"redis: {{password: {PLANTED}}}\nregistry: {{sweepInterval: 1s}}",
    ],
)
def test_a_secret_never_appears_in_a_problem(config: Path, text: str) -> None:
    config.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(config, flags={}, environ={})
    assert PLANTED not in "".join(traceback.format_exception(caught.value))


# --- rules --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "listen", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "LocalHost:0"]
)
def test_loopback_addresses_need_no_authentication(listen: str) -> None:
    settings = from_env(REGISTRYD_SERVER__LISTEN=listen)
    assert settings.server.listen[0].is_loopback


@pytest.mark.parametrize(
    "listen", [":1", "0.0.0.0:1", "[::]:1", "10.0.0.1:1", "registry.internal:1", "[fe80::1]:1"]
)
def test_without_authentication_other_addresses_are_refused_with_both_remedies(listen: str) -> None:
    (problem,) = problems(None, environ={"REGISTRYD_SERVER__LISTEN": f"127.0.0.1:2,{listen}"})
    assert problem.startswith(f"environment REGISTRYD_SERVER__LISTEN: server.listen: {listen} can")
    assert "auth.mode is none" in problem
    assert "listen on loopback" in problem
    assert "auth.insecure: true" in problem


def test_insecure_allows_other_addresses() -> None:
    settings = from_env(REGISTRYD_SERVER__LISTEN=":1", REGISTRYD_AUTH__INSECURE="true")
    assert settings.server.listen == (Address("", 1),)


def test_required_authentication_allows_other_addresses() -> None:
    settings = from_env(REGISTRYD_SERVER__LISTEN=":1", REGISTRYD_AUTH__MODE="required")
    assert settings.server.listen == (Address("", 1),)


ISSUED = "issuer: https://id.example, audience: registryd"


@pytest.mark.parametrize(
    ("jwt", "part"),
    [
        ("{jwksUrl: https://id.example/keys}", "needs issuer and audience"),
        ("{jwksUrl: https://id.example/keys, issuer: x}", "needs issuer and audience"),
        (f"{{jwksFile: a, publicKeyFile: b, {ISSUED}}}", "keys from one place"),
        (f"{{{ISSUED}}}", "needs jwksUrl, jwksFile, publicKeyFile or secret"),
        (f"{{jwksUrl: 'http://id.example/keys', {ISSUED}}}", "must begin with https://"),
        (f"{{jwksUrl: 'ftp://id.example', {ISSUED}}}", "must begin with https://"),
        (f"{{jwksFile: a, algorithms: [none], {ISSUED}}}", "Input should be"),
        (f"{{jwksFile: a, algorithms: [RS256, HS256], {ISSUED}}}", "HS256 needs auth.jwt.secret"),
        (f"{{jwksFile: a, algorithms: [], {ISSUED}}}", "at least 1 item"),
        (f"{{secret: {'x' * 32}, {ISSUED}}}", "has to be HS256, HS384 or HS512"),
        (f"{{secret: {'x' * 31}, algorithms: HS256, {ISSUED}}}", "at least 32 bytes"),
        (f"{{jwksFile: a, leeway: 6m, {ISSUED}}}", "at most 5m"),
    ],
)
def test_tokens_that_would_be_verified_badly_are_refused(config: Path, jwt: str, part: str) -> None:
    (problem,) = problems(config, f"auth: {{mode: required, jwt: {jwt}}}")
    assert "auth.jwt" in problem
    assert part in problem


@pytest.mark.parametrize(
    "jwt",
    [
        "jwksUrl: https://id.example/keys",
        "jwksUrl: 'http://127.0.0.1:8080/keys'",
        "publicKeyFile: key.pem, algorithms: [EdDSA]",
        f"secret: {'x' * 64}, algorithms: [HS256, HS512]",
    ],
)
def test_tokens_are_switched_on_by_the_place_of_their_keys(config: Path, jwt: str) -> None:
    config.write_text(f"auth: {{mode: required, jwt: {{{jwt}, {ISSUED}}}}}")
    settings = load(config, flags={}, environ={})
    assert settings.auth.jwt.enabled
    assert settings.auth.jwt.audience == ("registryd",)
    assert "x" * 32 not in json.dumps(describe(settings))


def test_anonymous_callers_need_a_role_and_networks(config: Path) -> None:
    for half in ("role: reader", "cidrs: [10.0.0.0/8]"):
        (problem,) = problems(config, f"auth: {{anonymous: {{{half}}}}}")
        assert "needs both a role and the networks" in problem


def test_rules_for_certificates_are_read_and_shown(config: Path) -> None:
    config.write_text("auth: {certificates: [{subject: CN=billing, role: writer, prefixes: [b-]}]}")
    (rule,) = load(config, flags={}, environ={}).auth.certificates
    assert (rule.subject, rule.role, rule.prefixes) == ("CN=billing", "writer", ("b-",))
    shown = describe(load(config, flags={}, environ={}))["auth"]
    assert shown["certificates"] == [  # type: ignore[index]
        {"subject": "CN=billing", "san": None, "role": "writer", "prefixes": ["b-"]}
    ]
    (problem,) = problems(config, "auth: {certificates: [{role: writer}]}")
    assert problem.startswith("config.yaml:1:23: auth.certificates.0: needs subject")


@pytest.mark.parametrize(
    ("listen", "part"),
    [
        ("8082", "not host:port"),
        ("::1:8082", "not host:port"),
        ("127.0.0.1:99999", "not a port"),
        ("[1:2]:3", "1:2 is not an IPv6 address"),
        ("127.0.0.1:1,127.0.0.1:1", "the same address twice"),
        (",", "at least one address"),
    ],
)
def test_what_is_no_address_is_refused(listen: str, part: str) -> None:
    (problem,) = problems(None, environ={"REGISTRYD_SERVER__LISTEN": listen})
    assert part in problem


@pytest.mark.parametrize("prefix", ["", "a:b", "a{b}", "a*", "a b", "ä", "a\n", "x" * 65])
def test_a_key_prefix_with_a_meaning_in_redis_is_refused(config: Path, prefix: str) -> None:
    YAML().dump({"redis": {"keyPrefix": prefix}}, config)
    with pytest.raises(ConfigError, match=r"redis\.keyPrefix: 1 to 64 letters"):
        load(config, flags={}, environ={})


@pytest.mark.parametrize(
    "url",
    [
        "embedded",
        "redis://h",
        "redis://u:p@h:6379/2",
        "rediss://[::1]:6380",
        "unix:///run/redis.sock?db=1",
    ],
)
def test_the_addresses_of_a_store_are_accepted(url: str) -> None:
    assert from_env(REGISTRYD_REDIS__URL=url).redis.url == url


@pytest.mark.parametrize("scheme", ["redis+sentinel", "redis+cluster"])
def test_sentinel_and_cluster_are_refused_by_name(scheme: str) -> None:
    (problem,) = problems(None, environ={"REGISTRYD_REDIS__URL": f"{scheme}://h:1"})
    assert f"redis.url: {scheme}:// is not spoken by this version; use redis://" in problem


@pytest.mark.parametrize(
    "url", ["h:6379", "http://h", "redis://", "redis://h:x", "unix://", "redis://:p"]
)
def test_what_is_no_address_of_a_store_is_refused(url: str) -> None:
    assert len(problems(None, environ={"REGISTRYD_REDIS__URL": url})) == 1


def test_a_password_in_two_places_is_refused() -> None:
    environ = {"REGISTRYD_REDIS__URL": "redis://:a@h", "REGISTRYD_REDIS__PASSWORD": "b"}
    (problem,) = problems(None, environ=environ)
    assert "redis.url holds a password too" in problem


def test_the_lease_clock_must_outlast_three_sweeps(config: Path) -> None:
    assert problems(config, "registry: {sweepInterval: 250ms}") == [
        "config.yaml:1:12: registry.sweepInterval: registry.leaseClockCap (600ms) must be at "
        "least three times registry.sweepInterval (250ms)"
    ]


def test_the_shortest_lease_must_outlast_three_caps(config: Path) -> None:
    assert problems(config, "registry: {leaseClockCap: 700ms}") == [
        "config.yaml:1:12: registry.leaseClockCap: registry.leaseClockCap (700ms) must be at "
        "most a third of the shortest lease, 2s"
    ]


def test_a_timeout_of_zero_is_refused(config: Path) -> None:
    assert problems(config, "server: {bodyTimeout: 0s}") == [
        "config.yaml:1:10: server.bodyTimeout: must be longer than zero"
    ]


def test_features_and_their_capabilities(config: Path) -> None:
    pairs = from_env(REGISTRYD_HEALTH__FEATURES="tts=speech, txt2img = draw").health.features
    assert pairs == {"tts": "speech", "txt2img": "draw"}
    config.write_text("health: {features: {tts: speech}}\n")
    assert load(config, flags={}, environ={}).health.features == {"tts": "speech"}
    [problem] = problems(config, "health: {features: {tts: <b>}}")
    assert problem.startswith("config.yaml:1:10: health.features: 1 to 128 letters")


def test_networks_are_read_from_a_list_or_a_variable(config: Path) -> None:
    assert from_env(REGISTRYD_EGRESS__ALLOWED="10.0.0.0/8, fd00::/8").egress.allowed == (
        "10.0.0.0/8",
        "fd00::/8",
    )
    assert problems(config, "egress: {allowed: [10.0.0.1/8]}") == [
        "config.yaml:1:20: egress.allowed.0: not a network, such as 10.0.0.0/8 or fd00::/8"
    ]


def test_a_level_is_read_in_capitals_too() -> None:
    assert from_env(REGISTRYD_LOGGING__LEVEL="WARNING").logging.level == "warning"


# --- showing and reloading ----------------------------------------------------------------------


def test_described_settings_hold_no_secret() -> None:
    settings = from_env(REGISTRYD_REDIS__URL="redis://h", REGISTRYD_REDIS__PASSWORD=PLANTED)
    assert describe(settings)["redis"] == {
        **{to_camel(name): value for name, value in vars_of(settings.redis)},
        "tls": {to_camel(name): value for name, value in vars_of(settings.redis.tls)},
        "url": "redis://h",
        "password": "****",
    }
    assert PLANTED not in repr(settings)


def vars_of(section: BaseModel) -> Iterator[tuple[str, object]]:
    for name, value in section:
        yield name, duration_text(value) if isinstance(value, timedelta) else value


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"redis://u:{PLANTED}@h:1/0", "redis://****@h:1/0"),
        (f"unix://u:{PLANTED}@/run/x.sock", "unix://****@/run/x.sock"),
        (f"redis://h?password={PLANTED}&db=1", "redis://h?password=****&db=1"),
    ],
)
def test_a_described_url_hides_its_password(url: str, shown: str) -> None:
    settings = from_env(REGISTRYD_REDIS__URL=url)
    described = describe(settings)["redis"]
    assert isinstance(described, dict)
    assert described["url"] == shown
    assert PLANTED not in repr(settings)


def test_described_settings_load_again_as_the_same_settings(config: Path) -> None:
    settings = from_env(
        REGISTRYD_SERVER__LISTEN="[::1]:1,localhost:2", REGISTRYD_VIEW__MAX_STALE="90s"
    )
    YAML().dump(describe(settings), config)
    assert load(config, flags={}, environ={}) == settings


def test_equal_settings_need_nothing() -> None:
    assert reload_diff(Settings(), Settings()) == ([], [])


def test_a_reload_tells_what_it_applies_from_what_needs_a_restart(config: Path) -> None:
    new = load_text(
        config,
        "logging: {level: debug, format: json}\nview: {maxStale: 5m, snapshotChunk: 5}\n"
        "registry: {defaultTtlSeconds: 60, guard: {fraction: 0.5}, streamMaxLen: 2000}\n"
        "redis: {password: x, url: 'redis://h'}\n",
    )
    applied, restart = reload_diff(Settings(), new)
    assert sorted(applied) == [
        "logging.level",
        "registry.defaultTtlSeconds",
        "registry.guard.fraction",
        "view.maxStale",
    ]
    assert sorted(restart) == [
        "logging.format",
        "redis.password",
        "redis.url",
        "registry.streamMaxLen",
        "view.snapshotChunk",
    ]


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().registry.guard.enabled = False  # type: ignore[misc]


# --- who may connect, and how


@pytest.mark.parametrize("given", ["1.3", "'1.3'"])
def test_a_version_of_tls_is_read_with_and_without_quotes(config: Path, given: str) -> None:
    text = f"server: {{tls: {{certFile: a.pem, minVersion: {given}}}}}"
    assert load_text(config, text).server.tls.min_version == "1.3"


@pytest.mark.parametrize(
    ("tls", "part"),
    [
        ("{keyFile: a.key}", "needs server.tls.certFile"),
        ("{clientCaFile: ca.pem, clientCertificates: required}", "needs server.tls.certFile"),
        ("{certFile: a.pem, clientCertificates: required}", "go together"),
        ("{certFile: a.pem, clientCaFile: ca.pem}", "go together"),
        ("{certFile: a.pem, minVersion: 1.1}", "minVersion"),
    ],
)
def test_half_of_tls_is_refused(config: Path, tls: str, part: str) -> None:
    [problem] = problems(config, f"server:\n  tls: {tls}")
    assert problem.startswith("config.yaml:2:")
    assert part in problem


def test_tls_settings_of_a_store_without_tls_are_refused(config: Path) -> None:
    [problem] = problems(config, "redis:\n  url: redis://h\n  tls: {caFile: ca.pem}")
    assert "rediss://" in problem
    assert load_text(config, "redis: {url: 'rediss://h', tls: {caFile: ca.pem}}").redis.tls.ca_file


@pytest.mark.parametrize("host", ["localhost:8082", "http://x", "a b", "::1", ""])
def test_what_is_no_host_is_refused(config: Path, host: str) -> None:
    assert "not a host" in problems(config, f"server: {{allowedHosts: ['{host}']}}")[0]


@pytest.mark.parametrize("origin", ["*", "ui.example", "https://ui.example/", "https://UI.example"])
def test_what_is_no_origin_is_refused(config: Path, origin: str) -> None:
    assert "not an origin" in problems(config, f"server: {{cors: {{origins: ['{origin}']}}}}")[0]


def test_hosts_origins_and_proxies_are_read_from_variables() -> None:
    server = from_env(
        REGISTRYD_SERVER__ALLOWED_HOSTS="Registry.Example,[fd00::1]",
        REGISTRYD_SERVER__CORS__ORIGINS="https://a.example,http://b.example:81",
        REGISTRYD_SERVER__TRUSTED_PROXIES="10.0.0.0/8,fd00::/8",
    ).server
    assert server.allowed_hosts == ("registry.example", "[fd00::1]")
    assert server.cors.origins == ("https://a.example", "http://b.example:81")
    assert server.trusted_proxies == ("10.0.0.0/8", "fd00::/8")


def test_limits_hold_when_somebody_says_so_and_not_without_authentication() -> None:
    assert not Settings().limited
    assert from_env(REGISTRYD_LIMITS__ENABLED="true").limited
    assert not from_env(REGISTRYD_LIMITS__ENABLED="false").limited
