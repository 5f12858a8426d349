"""`python -m jaxs1.serve` as a process: ready, requests, SIGTERM, wrong settings."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest

from tests.conftest import ONE_DEVICE, ROOT
from tests.serving.local import CHAT, QUESTION, joined, parse_events, write_tiny

pytest.importorskip("uvicorn")
LIMITS = [
    *("--limits.max_num_seqs", "4", "--limits.kv_cache_tokens", "2048"),
    *("--limits.max_seq_len", "256", "--limits.prefill_chunk_tokens", "32"),
]


class Process:
    """A server in a process of its own, on a free port."""

    def __init__(self, folder, *options):
        environment = {**os.environ, "XLA_FLAGS": ONE_DEVICE}
        command = [sys.executable, "-m", "jaxs1.serve", "--model", str(folder), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--dtype", "float32", *LIMITS, *options],
            cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.lines = []
        for line in self.process.stderr:
            self.lines.append(line.strip())
            if line.startswith("listening on "):
                break
        self.url = self.lines[-1].removeprefix("listening on ")
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        self.lines += [line.strip() for line in self.process.stderr]

    def get(self, path):
        try:
            with urllib.request.urlopen(self.url + path, timeout=60) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def post(self, path, body):
        data = json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        return urllib.request.urlopen(
            urllib.request.Request(self.url + path, data, headers), timeout=60
        )

    def wait_until_ready(self):
        states = set()
        for _ in range(3000):
            status, body = self.get("/health")
            states.add(json.loads(body)["status"])
            if status == 200:
                return states
            assert self.process.poll() is None, self.lines
            time.sleep(0.1)
        raise AssertionError(self.lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("process") / "tiny")
    tools = "{%- if tools %}{{- '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}"
    path = folder / "chat_template.jinja"
    path.write_text(tools + "{%- endif %}" + path.read_text())
    return folder


@contextlib.contextmanager
def running(folder, *options):
    server = Process(folder, *options)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
        server.process.stderr.close()


@pytest.mark.slow
def test_a_server_from_start_to_end(folder):
    with running(folder) as server:
        assert server.wait_until_ready() & {"loading", "compiling"}
        assert "thinking.max=8192" in server.lines[0]
        whole = json.load(server.post(CHAT, {"messages": QUESTION, "max_tokens": 40, "seed": 1}))
        choice = whole["choices"][0]
        body = {"messages": QUESTION, "max_tokens": 40, "seed": 1, "stream": True}
        events = parse_events(server.post(CHAT, body).read())
        assert joined(events)["content"] == choice["message"]["content"]
        assert events[-1]["choices"][0]["thinking"] == choice["thinking"]
        function = {"type": "function", "function": {"name": "add", "parameters": {}}}
        forced = {"tools": [function], "tool_choice": "required", "max_tokens": 80}
        whole = json.load(server.post(CHAT, {"messages": QUESTION, **forced, "thinking_budget": 5}))
        (call,) = whole["choices"][0]["message"]["tool_calls"]
        assert call["function"]["name"] == "add"
        # a stream that runs when the signal comes is not cut; nothing new is accepted
        long = body | {"max_tokens": 230, "thinking": {"budget_tokens": 160, "min_tokens": 150}}
        stream = server.post(CHAT, long)
        first = stream.readline()
        server.process.send_signal(signal.SIGTERM)
        events = parse_events(first + stream.read())
        assert events[-1]["choices"][0]["finish_reason"] in ("stop", "length")
        assert server.process.wait(60) == 0
        assert any(line.startswith("draining: ") for line in server.lines)


@pytest.mark.slow
def test_the_second_signal_ends_at_once(folder):
    with running(folder, "--warm_up", "off") as server:
        server.wait_until_ready()
        body = {"messages": QUESTION, "stream": True, "thinking": {"min_tokens": 100}}
        stream = server.post(CHAT, body)
        stream.readline()
        server.process.send_signal(signal.SIGTERM)
        while not any(line.startswith("draining: ") for line in server.lines):
            time.sleep(0.01)  # two signals at once would be one
        server.process.send_signal(signal.SIGTERM)
        begin = time.monotonic()
        assert server.process.wait(60) == 0 and time.monotonic() - begin < 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "error: model='': must name the weights"),
        (("--model", "nowhere/at/all"), "error: nowhere/at/all: no such folder"),
        (("--model", "x", "--port", "70000"), "error: port=70000: must be between"),
        (("--model", "x", "--cors", '["*"]'), "error: cors=*: would let any web page"),
        (("--model", "x", "--efforts", '{"low": -5}'), "error: efforts=low: -5: must be"),
    ],
)
def test_wrong_settings(run_module, options, message):
    done = run_module("jaxs1.serve", *options, *(() if "--port" in options else ("--port", "0")))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(message), done.stderr
