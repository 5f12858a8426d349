"""The playground: served with its headers, and driven in a browser where there is one.

The browser needs node, Chromium, and the environment variable PLAYWRIGHT: a file next to a
node_modules with playwright-core.
"""

import json
import os
import re
import shutil
import subprocess
import threading
import time

import pytest
import uvicorn

from jaxs1.serving.app import FILES, PLAYGROUND
from tests.conftest import ROOT
from tests.decoding.engines import open_tiny
from tests.serving.local import LIMITS, Local, write_tiny


def test_the_page_and_its_files(server):
    for path, (name, kind) in FILES.items():
        reply = server.get(path)
        assert reply.content == (PLAYGROUND / name).read_bytes()
        assert reply.headers["content-type"].startswith(kind)
        assert "default-src 'none'" in reply.headers["content-security-policy"]
    for path in ("/playground.py", "/../app.py", "/playground/index.html", "/index.html"):
        assert server.get(path).status_code == 404


def test_nothing_comes_from_elsewhere_and_text_is_never_parsed():
    page = (PLAYGROUND / "index.html").read_text()
    assert set(re.findall(r'(?:src|href)="([^"]+)"', page)) == {
        "/playground.css", "/playground.js", "data:,",
    }  # fmt: skip
    script = (PLAYGROUND / "playground.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)
    ids = set(re.findall(r'id="([^"]+)"', page))
    assert set(re.findall(r'\$\("([^"]+)"\)', script)) <= ids


@pytest.mark.slow
def test_in_a_browser(tmp_path):
    chromium, node = shutil.which("chromium"), shutil.which("node")
    if not (chromium and node and "PLAYWRIGHT" in os.environ):
        pytest.skip("needs node, chromium and PLAYWRIGHT")
    local = Local(open_tiny(write_tiny(tmp_path / "tiny"), **{**LIMITS, "decode_steps": 2}))
    run = local.engine.end

    def slowly():
        time.sleep(0.05)  # so that a thought lasts until somebody ends it
        return run()

    local.engine.end = slowly
    http = uvicorn.Server(uvicorn.Config(local.app, port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=lambda: local.run(http.serve(), timeout=400))
    thread.start()
    try:
        while not http.started:
            pass
        port = http.servers[0].sockets[0].getsockname()[1]
        done = subprocess.run(
            [node, ROOT / "tests/serving/playground.mjs", f"http://127.0.0.1:{port}/", tmp_path],
            env={**os.environ, "CHROMIUM": chromium}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    finally:
        http.should_exit = True
        thread.join()
        local.close()
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["errors"] == [] and seen["fits"] and seen["rows"] == 3
    assert seen["thinking"]["budget_tokens"] == 32 and seen["thinking"]["num_waits"] == 2
    assert seen["thinking"]["wait_strings"] == ["Hmm"]
    assert "".join(seen["marks"]) in ("", "Hmm", "HmmHmm")  # a piece may end inside of a Wait
    assert seen["byHand"].startswith("ended by hand")
