"""Chat completions over a socket: what is tried again, and how long it waits."""

import email.utils
import itertools
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from jaxs1.inference.interface import NoAnswer
from jaxs1.inference.openai_client import LONGEST_PAUSE, EndpointConfig, OpenAIClient, _retry_after


@contextmanager
def endpoint(replies):
    """A client, and the times of its requests; each reply is (status, headers, body)."""
    times, replies = [], iter(replies)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            times.append(time.monotonic())
            self.rfile.read(int(self.headers["Content-Length"]))
            status, headers, body = next(replies)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1", times
    finally:
        http.shutdown()
        http.server_close()


GOOD = 200, {}, json.dumps({"text": "yes"}).encode()


def read(reply):
    return reply["text"]


def test_retry_after_holds_for_all_requests():
    with endpoint([(429, {"Retry-After": "0.4"}, b""), GOOD, GOOD]) as (url, times):
        client = OpenAIClient(EndpointConfig(url, backoff=0.001))
        with ThreadPoolExecutor(2) as workers:
            first = workers.submit(client.chat, {}, read)
            while not client.retries:
                time.sleep(0.005)
            assert client.chat({}, read) == first.result() == "yes"
    assert len(times) == 3
    assert min(times[1:]) - times[0] >= 0.4


def test_waits_double_from_attempt_to_attempt():
    bad = 500, {}, b"oops"
    with endpoint([bad, bad, bad, GOOD]) as (url, times):
        assert OpenAIClient(EndpointConfig(url, backoff=0.1)).chat({}, read) == "yes"
    waits = [b - a for a, b in itertools.pairwise(times)]
    for wait, least in zip(waits, (0.05, 0.1, 0.2), strict=True):
        assert wait >= least


def test_pace():
    with endpoint([GOOD] * 6) as (url, times):
        client = OpenAIClient(EndpointConfig(url, requests_per_minute=600))
        with ThreadPoolExecutor(6) as workers:
            list(workers.map(lambda _: client.chat({}, read), range(6)))
    # a request starts when its turn comes; how long it takes to arrive is chance
    assert times[-1] - times[0] >= 0.4


def test_closing_ends_a_wait():
    with endpoint([(503, {"Retry-After": "60"}, b"")]) as (url, _):
        client = OpenAIClient(EndpointConfig(url))
        with ThreadPoolExecutor(1) as workers:
            pending = workers.submit(client.chat, {}, read)
            while not client.retries:
                time.sleep(0.005)
            client.close()
            with pytest.raises(NoAnswer, match="interrupted"):
                pending.result(10)


def pause_for(value):
    class Error:
        headers = {"Retry-After": value}  # noqa: RUF012

    return _retry_after(Error)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7), ("0.5", 0.5), ("-3", 0), ("soon", 0), ("", 0), ("999999", LONGEST_PAUSE)],
)
def test_retry_after_is_seconds(value, seconds):
    assert pause_for(value) == seconds


def test_retry_after_is_a_date():
    date = email.utils.formatdate(time.time() + 500, usegmt=True)
    assert 400 < pause_for(date) <= 501
