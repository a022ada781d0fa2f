"""The first and the last thing an operator sees: how it starts, what it says, and why it refuses."""

import asyncio
import json
import os
import pty
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

import pytest
from processes import Machine, Registryd, environment, free_port, until

from registryd import __version__

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """The two ends of a pseudo-terminal: ours, and the one for a process."""
    ours, theirs = pty.openpty()
    try:
        yield ours, theirs
    finally:
        os.close(ours)
        os.close(theirs)


async def test_an_empty_directory_is_enough_to_be_ready(machine: Machine) -> None:
    daemon = await machine.start()
    assert (await daemon.get("/readyz"))[::2] == (200, {"status": "ready"})
    status, _, answer = await daemon.get("/readyz?verbose")
    assert status == 200
    assert answer["checks"]["store"]["reachable"] is True
    assert (await daemon.get("/services"))[2]["services"] == []
    assert {"event", "level", "logger", "timestamp"} <= daemon.log[0].keys()
    (serving,) = daemon.said("serving")
    assert serving["version"] == __version__
    assert serving["instances"] == 0


async def test_a_person_at_a_terminal_gets_a_banner_with_commands_that_work(
    machine: Machine,
) -> None:
    port = free_port()
    with terminal() as (ours, theirs):
        process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-m",
                "registryd",
                "serve",
                "--port",
                str(port),
                "--data-dir",
                "data",
            ),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=machine.home,
            env=environment(machine.home, {"NO_COLOR": "1"}),
            start_new_session=True,
        )
        seen = bytearray()

        def read() -> None:
            seen.extend(os.read(ours, 65536))

        asyncio.get_running_loop().add_reader(ours, read)
        try:
            await until(lambda: b"/heartbeat" in seen)
            text = seen.decode().replace("\r\n", "\n")
            assert f"registryd {__version__}" in text
            assert f"http://127.0.0.1:{port}" in text
            assert '"event"' not in text, "no JSON for people"
            commands = text[text.index("    curl -X POST") :]
            shell = await asyncio.create_subprocess_exec(
                *("bash", "-euc", commands.replace("curl ", "curl -sf ")),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            answers, errors = await shell.communicate()
            assert shell.returncode == 0, errors
            assert b'"name":"hello"' in answers
            process.send_signal(signal.SIGINT)
            assert await asyncio.wait_for(process.wait(), 15) == 0
        finally:
            asyncio.get_running_loop().remove_reader(ours)
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert b"Traceback" not in seen


async def test_without_a_command_it_serves(machine: Machine) -> None:
    config = machine.write("config.yaml", "server: {listen: '127.0.0.1:0'}\n")
    daemon = await machine.run(env={"REGISTRYD_CONFIG": config})
    await daemon.serving()
    assert (await daemon.get("/readyz"))[0] == 200


async def test_no_password_is_ever_told(machine: Machine) -> None:
    secret = "Tr0ub4dor%26Three"  # noqa: S105
    async with machine.private_store(password=unquote(secret)) as store:
        url = f"redis://:{secret}@127.0.0.1:{store.port}/0"
        daemon = await machine.start(
            env={"REGISTRYD_REDIS__URL": url, "REGISTRYD_LOGGING__LEVEL": "debug"}
        )
        await daemon.register("web:one")
        assert daemon.said("serving")[0]["store"] == f"127.0.0.1:{store.port}/0"
        answers = [
            await daemon.get(page) for page in ("/readyz?verbose", "/metrics", "/openapi.json")
        ]
        await store.config_set("requirepass", "changed")
        await store.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        status, _, refused = await until(lambda: unavailable(daemon))
        answers.append((status, {}, refused))
        assert "password" in refused["detail"]
        check = await machine.run("check-config", env={"REGISTRYD_REDIS__URL": url})
        assert await check.exit_code() == 0
        daemon.signal(signal.SIGTERM)
        await daemon.exit_code()
        told = json.dumps([daemon.lines, check.lines, *map(str, answers)])
    assert "Tr0ub4dor" not in told
    assert "****" in "".join(check.lines)


async def unavailable(daemon: Registryd) -> tuple[int, object, dict[str, str]] | None:
    answer = await daemon.register("web:two")
    return answer if answer[0] == 503 else None


async def refusal(daemon: Registryd, code: int = 1) -> str:
    """The one line with which it refused, without whatever it logged until then."""
    assert await daemon.exit_code() == code, daemon.lines
    told = [line for line in daemon.lines if not line.startswith("{")]
    assert len(told) == 1, told
    (line,) = told
    assert line.startswith("registryd: ")
    assert not any(json.loads(line).get("exception") for line in daemon.lines if line[0] == "{")
    return line.removeprefix("registryd: ")


async def test_settings_that_cannot_work_are_refused_in_one_line(machine: Machine) -> None:
    config = machine.write("wrong.yaml", "redis:\n  keyprefix: mine\n")
    open_to_all, wrong_key, nonsense, check = await asyncio.gather(
        machine.launch("--host", "0.0.0.0"),  # noqa: S104  to be refused
        machine.launch("--config", config),
        machine.run("serve", "--prot", "80"),
        machine.run("check-config", "--config", config),
    )
    line = await refusal(open_to_all)
    assert line.startswith(
        "--host --port: server.listen: 0.0.0.0:0 can be reached from other machines"
    )
    assert "auth.insecure: true" in line
    line = await refusal(wrong_key)
    assert line == f'{config}:2:3: redis.keyprefix: unknown key; did you mean "keyPrefix"?'
    assert await refusal(check) == line
    assert await nonsense.exit_code() == 2
    assert "--prot" in "".join(nonsense.lines)


async def test_what_is_in_use_already_is_refused_in_one_line(machine: Machine) -> None:
    first = await machine.start()
    port = first.url.rpartition(":")[2]
    same_port, same_data = await asyncio.gather(
        machine.launch("--port", port, data="other"), machine.launch()
    )
    assert await refusal(same_port) == (
        f"127.0.0.1:{port} is already in use by another process: stop it or choose another port "
        "with --port"
    )
    line = await refusal(same_data)
    assert f"is in use by the registryd with pid {first.process.pid}." in line
    assert f"--redis-url {first.store_url}" in line, "the remedy, ready to be copied"
    assert (await first.get("/readyz"))[2] == {"status": "ready"}


async def test_a_store_that_is_not_fit_is_refused_in_one_line(machine: Machine) -> None:
    async with machine.private_store() as store:
        path = store.connection_pool.connection_kwargs["path"]
        url = f"unix://{path}"
        rights = (
            "on",
            "nopass",
            "~ossa:*",
            "+@read",
            "+@write",
            "+@scripting",
            "+time",
            "+info",
            "+ping",
        )
        await store.execute_command("ACL", "SETUSER", "silent", *rights)
        await store.execute_command(
            "ACL", "SETUSER", "speechless", *rights, "&ossa:*", "+publish", "-@scripting"
        )
        await store.execute_command(
            "ACL", "SETUSER", "timeless", *rights, "&ossa:*", "+publish", "-xadd"
        )
        await store.execute_command(
            "ACL", "SETUSER", "astray", *rights, "&ossa:*", "+publish", "resetkeys", "~else:*"
        )
        await store.hset(
            "theirs:meta", mapping={"schema": "1", "deployment": "north", "partitions": "1"}
        )
        await store.hset("old:meta", mapping={"schema": "0", "deployment": "x", "partitions": "1"})
        users = {
            name: await machine.launch("--redis-url", f"unix://{name}:any@{path}")
            for name in ("silent", "speechless", "timeless", "astray")
        }
        south = await machine.launch(
            *("--redis-url", url),
            env={"REGISTRYD_REDIS__KEY_PREFIX": "theirs", "REGISTRYD_REDIS__DEPLOYMENT": "south"},
        )
        old = await machine.launch("--redis-url", url, env={"REGISTRYD_REDIS__KEY_PREFIX": "old"})
        for name, daemon in users.items():
            line = await refusal(daemon)
            assert "the user needs ~ossa:* &ossa:* +@read" in line, (name, line)
        line = await refusal(south)
        assert "belongs to deployment 'north', not 'south': correct redis.url" in line
        assert "has schema 0, this registryd speaks 1" in await refusal(old)

        await store.config_set("maxmemory-policy", "allkeys-lru")
        line = await refusal(await machine.launch("--redis-url", url))
        assert "evicts keys (maxmemory-policy allkeys-lru)" in line
        assert "set maxmemory-policy noeviction" in line
        await store.config_set("maxmemory-policy", "noeviction")
        await store.execute_command("REPLICAOF", "127.0.0.1", "1")
        line = await refusal(await machine.launch("--redis-url", url))
        assert line.endswith("is a replica: give the address of the primary")
        await store.execute_command("REPLICAOF", "NO", "ONE")
        left = [key async for key in store.scan_iter("ossa:*") if not await store.pttl(key) > 0]
        assert left == [], "what a start tries out it takes away"


async def test_a_store_that_does_not_let_us_in_is_given_ten_seconds(machine: Machine) -> None:
    absent = f"127.0.0.1:{free_port()}"
    async with machine.private_store(password="right") as store:  # noqa: S106
        path = store.connection_pool.connection_kwargs["path"]
        nobody, wrong = await asyncio.gather(
            machine.launch("--redis-url", f"redis://{absent}"),
            machine.launch("--redis-url", f"unix://:Wr0ng@{path}"),
        )
        assert await refusal(nobody) == (
            f"the store at {absent} cannot be reached: is it running, and is redis.url right?"
        )
        assert "refused the user or password" in await refusal(wrong)
        assert "Wr0ng" not in "".join(wrong.lines)


async def test_version_and_configuration_can_be_asked_for(machine: Machine) -> None:
    config = machine.write(
        "config.yaml",
        "redis: {url: 'redis://me:hush@db:6379/0'}\nregistry: {guard: {maxHold: 90s}}\n",
    )
    version, shown = await asyncio.gather(
        machine.run("--version"), machine.run("check-config", "--config", config)
    )
    assert await version.exit_code() == await shown.exit_code() == 0
    assert version.lines == [f"registryd {__version__}"]
    settings = json.loads("\n".join(shown.lines))
    assert settings["redis"]["url"] == "redis://****@db:6379/0"
    assert settings["registry"]["guard"] == {
        "enabled": True,
        "minDue": 5,
        "fraction": 0.15,
        "maxHold": "90s",
    }
    assert settings["server"]["listen"] == ["127.0.0.1:8082"]
