"""An engine that fails, and readers that do not read: what the others see."""

import asyncio
import itertools
import json

import pytest

from jaxs1.decoding.outputs import StreamOutput, TokenLog
from jaxs1.serving.output_stream import Mailbox
from tests.serving.local import CHAT, QUESTION, Local

LONG = {"messages": QUESTION, "thinking": {"budget_tokens": 150, "min_tokens": 140}}


@pytest.fixture
def failing(tiny_engine, monkeypatch):
    """A service whose engine fails in its fourth run."""
    local, runs, end = Local(tiny_engine), itertools.count(), tiny_engine.end

    def fail():
        if next(runs) < 3:
            return end()
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(tiny_engine, "end", fail)
    yield local
    monkeypatch.undo()
    tiny_engine.end()
    for number in range(tiny_engine.submitted):
        tiny_engine.cancel(number)
    local.close()
    assert local.idle()


def test_an_engine_that_fails_is_the_answer_to_all(failing):
    async def all_ask():
        async with failing.http() as client:
            bodies = [LONG | {"stream": i % 2 == 0} for i in range(6)]
            replies = [client.post(CHAT, json=body) for body in bodies]
            found = await asyncio.gather(*replies)
            await asyncio.wait_for(failing.service.finished.wait(), 10)
            return found, await client.get("/health")

    replies, health = failing.run(all_ask())
    for stream, whole in zip(replies[::2], replies[1::2], strict=True):
        assert whole.status_code == 500
        assert whole.json()["error"]["code"] == "internal_error"
        *_, error, done = stream.content.strip().split(b"\n\n")
        assert json.loads(error[6:])["error"]["code"] == "internal_error"
        assert done == b"data: [DONE]"
        assert "device" not in whole.text
    assert (health.status_code, health.json()["status"]) == (503, "failed")
    assert failing.post(CHAT, {"messages": QUESTION}).status_code == 503


def test_calls_from_another_thread_are_made_in_order_with_few_wake_ups(server):
    seen, wakes = [], []

    async def receive():
        mailbox = Mailbox()
        loop = asyncio.get_running_loop()
        empty = mailbox._empty
        mailbox._empty = lambda: (wakes.append(1), empty())

        def work():
            for i in range(1000):
                mailbox.put(lambda i=i: seen.append(i))

        await loop.run_in_executor(None, work)
        while len(seen) < 1000:
            await asyncio.sleep(0.001)

    server.run(receive())
    assert seen == list(range(1000)) and len(wakes) <= 1000


def test_what_is_not_read_is_merged(server):
    """The engine never waits for a reader: two outputs become one."""

    async def both():
        running = await server.service.start(lambda: job())
        stream = running.stream
        running.close()
        for token in (5, 6):
            stream._merge(0, StreamOutput(0, 0, TokenLog([token], [False], [1]), None))
        return stream._unread[0, 0].new_tokens.tokens

    def job():
        from jaxs1.serving import requests

        return requests.chat_job(LONG, server.config, server.engine)

    assert server.run(both())[-2:] == [5, 6]


@pytest.mark.parametrize("stream", [True, False])
def test_names_of_fields_that_cannot_be_in_a_header(server, stream):
    body = {"messages": QUESTION, "max_tokens": 2, "stream": stream, "a\x1f\r\nb": 1, "é€": 2}
    reply = server.post(CHAT, body)
    assert reply.status_code == 200
    assert reply.headers["x-ignored-fields"] == "a???b,??"
