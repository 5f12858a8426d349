"""The example for Ray Serve, with one replica: a whole reply, a stream, a refusal."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

pytest.importorskip("ray.serve")
from tests.conftest import ROOT
from tests.serving.local import CHAT, QUESTION, joined, parse_events

#: Runs in a process of its own, which ends the cluster with itself.
PROGRAM = """
import sys
import ray
from ray import serve
from examples.ray_serve import app
ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
serve.run(app, name="test")
print("up", flush=True)
sys.stdin.read()
serve.shutdown()
"""


def post(url, body):
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url + CHAT, json.dumps(body).encode(), headers)
    return urllib.request.urlopen(request, timeout=120)


def test_a_replica(folder, unused_port):
    settings = f"--model {folder} --warm_up off --limits.max_seq_len 512"
    environment = {**os.environ, "JAXS1_SERVE": settings, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, str(unused_port)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        try:
            lines = iter(process.stdout.readline, "")
            assert any(line == "up\n" for line in lines)
            url = f"http://127.0.0.1:{unused_port}"
            reply = json.load(post(url, {"messages": QUESTION, "thinking_budget": 40}))
            assert reply["choices"][0]["message"]["content"] == "42"
            stream = post(url, {"messages": QUESTION, "stream": True, "max_tokens": 60})
            assert joined(parse_events(stream.read()))["content"] == "42"
            with pytest.raises(urllib.error.HTTPError, match="400"):
                post(url, {"messages": QUESTION, "thinking_bugdet": 1})
        finally:
            process.stdin.close()
            process.wait(60)


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
