"""Clients for Node, installed by `make clients` where npm exists."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

NODE = Path(os.environ.get("JAXS1_NODE", "nowhere"))
HERE = Path(__file__).parent


#: Before any fixture, or a server would be started for nothing.
pytestmark = pytest.mark.skipif(
    not (NODE / "node_modules" / "openai").exists() or shutil.which("node") is None,
    reason="Node's clients are not installed: make clients",
)


def run(script, url):
    """What a script prints; it has to be next to the packages that it imports."""
    copy = shutil.copy(HERE / script, NODE / script)
    done = subprocess.run(["node", copy, url], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_openai(url):
    assert run("openai.mjs", url) == {
        "content": "42", "reasoning": "First", "tokens": 1, "streamed": "42", "thinking": "First",
        "refused": [400, "thinking_bugdet"], "call": {"name": "add", "arguments": '{"a": 1}'},
    }  # fmt: skip


def test_ai_sdk(url):
    found = run("ai_sdk.mjs", url)
    answered = found.pop("answered")
    assert found == {
        "content": "42", "reasoning": "First", "streamed": "42", "cut": "",
        "call": [["add", {"a": 1}]],
    }  # fmt: skip
    assert "First" not in answered
