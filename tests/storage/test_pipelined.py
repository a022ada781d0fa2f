"""The connection that all scripts share."""

import asyncio

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from registryd.storage.pipelined import Pipelined


def over(url: str, *, timeout_seconds: float = 5.0) -> Pipelined:
    return Pipelined(
        Redis.from_url(url, protocol=3).connection_pool, timeout_seconds=timeout_seconds
    )


async def test_each_caller_gets_its_own_reply(store_url: str) -> None:
    link = over(store_url)
    try:
        replies = await asyncio.gather(*(link.call("ECHO", str(n)) for n in range(500)))
        assert replies == [str(n).encode() for n in range(500)]
    finally:
        await link.close()


async def test_a_refusal_is_for_its_caller_alone_and_keeps_its_code_word(store_url: str) -> None:
    link = over(store_url)
    try:
        wrong, right = await asyncio.gather(
            link.call("LPUSH"), link.call("ECHO", "b"), return_exceptions=True
        )
        assert isinstance(wrong, ResponseError)
        assert str(wrong).startswith("ERR wrong number of arguments")
        assert right == b"b"
    finally:
        await link.close()


async def test_a_caller_that_has_gone_does_not_shift_the_replies(store_url: str) -> None:
    link = over(store_url)
    try:
        await link.call("PING")
        gone = asyncio.create_task(link.call("ECHO", "gone"))
        stays = asyncio.create_task(link.call("ECHO", "stays"))
        await asyncio.sleep(0)
        gone.cancel()
        assert await stays == b"stays"
    finally:
        await link.close()


async def test_a_broken_connection_fails_all_who_wait_and_the_next_call_opens_another(
    store_url: str,
) -> None:
    link, other = over(store_url), over(store_url)
    try:
        number = await link.call("CLIENT", "ID")
        waiting = [asyncio.create_task(link.call("BLPOP", "nothing", 0)) for _ in range(3)]
        await asyncio.sleep(0)
        await other.call("CLIENT", "KILL", "ID", number)
        for failed in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(failed, RedisConnectionError)
        assert await link.call("CLIENT", "ID") != number
    finally:
        await link.close()
        await other.close()


async def test_a_store_that_does_not_answer_in_time_is_given_up(store_url: str) -> None:
    link = over(store_url, timeout_seconds=0.1)
    try:
        with pytest.raises(Exception, match="did not answer in time"):
            await link.call("BLPOP", "nothing", 0)
        assert await link.call("PING") == b"PONG"
    finally:
        await link.close()
