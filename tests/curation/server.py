"""An OpenAI-compatible server on 127.0.0.1 that remembers what it was asked."""

import json
import re
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Args: url; reply: prompt -> text, or (status, body); asked: question -> times."""

    def __init__(self, reply, delay):
        self.reply, self.delay = reply, delay
        self.asked, self.most_at_once = Counter(), 0
        self._lock, self._now = threading.Lock(), 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.answer(self, body)

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, handler, body):
        assert handler.path == "/v1/chat/completions"
        prompt = body["messages"][0]["content"]
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            self.asked[(body["model"], question_of(prompt))] += 1
        time.sleep(self.delay)
        reply = self.reply(prompt)
        if isinstance(reply, str):
            reply = 200, json.dumps({"choices": [{"message": {"content": reply}}]})
        with self._lock:
            self._now -= 1
        try:
            handler.send_response(reply[0])
            handler.end_headers()
            handler.wfile.write(reply[1].encode())
        except OSError:
            pass  # the client was killed

    def close(self):
        self._http.shutdown()
        self._http.server_close()


@contextmanager
def serve(reply, delay=0.0):
    server = Server(reply, delay)
    try:
        yield server
    finally:
        server.close()


def question_of(prompt):
    return re.search(r"Question \d+", prompt)[0]


def number_of(prompt):
    return int(question_of(prompt).split()[1])
