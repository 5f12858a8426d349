"""A server in this process: real application and engine, an event loop in a thread, no socket."""

import asyncio
import json
import threading

import httpx

from jaxs1.serving.app import make_app
from jaxs1.serving.config import SamplingDefaults, ServeConfig, ThinkingDefaults
from jaxs1.serving.service import Service
from tests.decoding.engines import encode, write_model

LIMITS = {"max_num_seqs": 4, "kv_cache_tokens": 2048, "max_seq_len": 256}
CHAT = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "What is 12 + 30?"}]
#: Sampling that ends thinking and answer now and then.
HOT = {"temperature": 1.2}


def write_tiny(folder):
    """A model that ends its thinking and its answer now and then."""
    ids = {"<|im_start|>": 2.0, "<|im_end|>": 1.5, " ": 2.0, "\n": 1.5}
    write_model(folder, {encode(text)[0]: amount for text, amount in ids.items()}, context=512)
    return folder


def config_of(**settings):
    """Settings for tests: short answers, everything compiled when it is needed."""
    defaults = {
        "model": "tiny",
        "thinking": ThinkingDefaults(max=64, max_answer_tokens=32, min_answer_tokens=4),
        "sampling": SamplingDefaults(temperature=1.0),
        "warm_up": "off",
    }
    return ServeConfig(**{**defaults, **settings})


class Local:
    """A service on an engine, and its application.

    Args:
        engine: engine
        settings: of `config_of`
    """

    def __init__(self, engine, **settings):
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.config = config_of(**settings)
        self.engine = engine
        self.run(self._open())

    async def _open(self):
        self.service = Service(self.config)
        self.app = make_app(self.service)
        await self.service.use([self.engine])

    def close(self):
        self.run(self.service.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def run(self, coroutine, timeout=120):
        """Run a coroutine in the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def http(self, **options):
        """An httpx client of the application; for use in the loop."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(
            transport=transport, base_url="http://test", timeout=120, **options
        )

    async def _send(self, method, path, **options):
        async with self.http() as client:
            return await client.request(method, path, **options)

    def get(self, path, **options):
        return self.run(self._send("GET", path, **options))

    def post(self, path, body=None, **options):
        if body is not None:
            options["json"] = body
        return self.run(self._send("POST", path, **options))

    def chat(self, **body):
        """A chat completion's JSON."""
        reply = self.post(CHAT, {"messages": QUESTION, **body})
        assert reply.status_code == 200, reply.text
        return reply.json()

    def events(self, path=CHAT, **body):
        """The events of a streamed reply, without [DONE]."""
        base = {"messages": QUESTION} if path == CHAT else {}
        reply = self.post(path, {**base, **body, "stream": True})
        assert reply.status_code == 200, reply.text
        assert reply.headers["content-type"].startswith("text/event-stream")
        return parse_events(reply.content)

    def call(self, function):
        """The result of a function of the engine, in the thread that owns it."""
        return self.service._threads[0].call(function).result(120)

    def idle(self):
        """Whether all rows and pages are free."""
        pages = self.engine.scheduler.pages
        return pages.num_free == pages.size and not self.engine.busy and not self.service.running


def parse_events(data):
    """Objects of server-sent events; comments are skipped, [DONE] must be the last event."""
    blocks = [b for b in data.decode().split("\n\n") if b and not b.startswith(":")]
    assert all(block.startswith("data: ") for block in blocks)
    assert blocks[-1] == "data: [DONE]"
    return [json.loads(block[6:]) for block in blocks[:-1]]


def joined(events, index=0):
    """Content and reasoning of a choice, joined."""
    deltas = [c["delta"] for event in events for c in event["choices"] if c["index"] == index]
    texts = {}
    for delta in deltas:
        for name, text in delta.items():
            if name in ("content", "reasoning", "reasoning_content"):
                texts[name] = texts.get(name, "") + text
    return texts
