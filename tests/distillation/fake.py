"""An endpoint that fails at random, and what its answers must become; in plain Python.

What it answers depends on the question and the seed of a request only, so an undisturbed run and a
killed one end with the same answers. How often it fails before depends on them as well.
"""

import hashlib
import json
import random
import re
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("429", "500", "cut", "broken", "html", "no choices")
#: Kind of an answer -> the reason for which it is dropped.
KINDS = {
    "right": "", "reasoning": "", "tags": "", "closed": "", "wrong": "wrong",
    "unthinking": "no thinking", "length": "cut off", "silent": "no answer",
    "vague": "no final answer",
}  # fmt: skip
WEIGHTS = (8, 8, 4, 2, 3, 1, 1, 1, 1)
PRICES = 0.55, 2.19


def rows(n):
    """Questions i + i, with sources and difficulties."""
    return [
        {
            "question": f"What is {i} + {i}?",
            "solution": str(2 * i),
            "source_type": ("algebra", "sums", "Omni$MATH")[i % 3],
            "difficulty": 1 + i % 4,
            "thinking_trajectories": ["stale"],
            "correct": False,
        }
        for i in range(n)
    ]


def write_questions(path, questions):
    path.write_text("".join(json.dumps(row) + "\n" for row in questions))
    return path


def key_of(question):
    """The key of a question."""
    return hashlib.sha256(question.encode()).hexdigest()[:16]


def seed_of(question, sample, seed=0):
    """The seed of a request."""
    text = f"{seed} {key_of(question)} {sample}"
    return int(hashlib.sha256(text.encode()).hexdigest()[:7], 16)


def answer_of(question, seed):
    """Kind, thinking, answer, and tokens of prompt and completion."""
    rng = random.Random(f"{question} {seed}")
    (kind,) = rng.choices(list(KINDS), WEIGHTS)
    numbers = re.findall(r"\d+", question)
    right = 2 * int(numbers[0]) if numbers else 0
    thinking = f"Let me see, {rng.random()}. " + "Hmm. " * rng.randrange(60)
    answer = f"So it is \\boxed{{{right + (kind == 'wrong')}}}"
    thinking = "" if kind == "unthinking" else thinking.strip()
    answer = {"silent": "", "vague": "I do not know.\nIt is hard."}.get(kind, answer)
    return kind, thinking, answer, len(question.split()), len((thinking + answer).split())


def reply_of(question, seed):
    """The JSON of a reply."""
    kind, thinking, answer, prompt, completion = answer_of(question, seed)
    message = {"role": "assistant", "content": answer}
    if kind == "tags":
        message["content"] = f"<think>\n{thinking}\n</think>\n\n{answer}"
    elif kind == "closed":  # templates that write <think> themselves
        message["content"] = f"{thinking}</think>{answer}"
    elif thinking:
        message["reasoning" if kind == "reasoning" else "reasoning_content"] = thinking
    ended = "length" if kind == "length" else "stop"
    return {
        "id": "x",
        "created": random.randrange(10**9),  # must not be part of any output
        "choices": [{"message": message, "finish_reason": ended}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion},
    }


class Fake:
    """The endpoint: `arrived` counts requests by (question, seed), `answered` complete replies.

    Args: faulty: whether it fails at random; change: from the reply's JSON to another one.
    """

    def __init__(self, faulty=True, change=lambda reply: reply):
        self.faulty, self.change = faulty, change
        self.arrived, self.answered, self.bodies = Counter(), Counter(), []
        self.lock, self.now, self.most_at_once = threading.Lock(), 0, 0
        self.headers = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.now += 1
                    outer.most_at_once = max(outer.most_at_once, outer.now)
                    outer.headers.append(dict(self.headers))
                try:
                    outer.serve(self, body)
                except OSError:
                    pass  # the client was killed
                finally:
                    with outer.lock:
                        outer.now -= 1

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.request_queue_size = 64
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def serve(self, handler, body):
        assert handler.path == "/v1/chat/completions"
        question, seed = body["messages"][-1]["content"], body["seed"]
        with self.lock:
            attempt = self.arrived[question, seed]
            self.arrived[question, seed] += 1
            self.bodies.append(body)
        rng = random.Random(f"faults {question} {seed}")
        faults = [rng.choice(FAULTS) for _ in range(rng.choice((0, 0, 0, 1, 1, 2)))]
        fault = faults[attempt] if self.faulty and attempt < len(faults) else None
        text = json.dumps(self.change(reply_of(question, seed)))
        if fault is None:  # before the client can have the reply
            with self.lock:
                self.answered[question, seed] += 1
        self.write(handler, fault, text)

    def write(self, handler, fault, text):
        if fault == "cut":
            text, length = text[: len(text) // 2], len(text)
        else:
            text = {"broken": text[:-5], "html": "<html>", "no choices": '{"choices": []}'}.get(
                fault, text
            )
            length = len(text.encode())
        handler.send_response(int(fault) if fault in ("429", "500") else 200)
        if fault == "429":
            handler.send_header("Retry-After", "0")
        handler.send_header("Content-Length", str(length))
        handler.end_headers()
        handler.wfile.write(text.encode())

    def close(self):
        self._http.shutdown()
        self._http.server_close()


@contextmanager
def serve(**options):
    fake = Fake(**options)
    try:
        yield fake
    finally:
        fake.close()


def arguments(questions, folder, url, **more):
    """The command line of `jaxs1.traces`."""
    settings = {
        "questions": questions, "output": folder, "model": "fake-r1", "endpoint.url": url,
        "endpoint.backoff": 0.001, "endpoint.parallel": 8, "price.input": PRICES[0],
        "price.output": PRICES[1],
    }  # fmt: skip
    settings |= {name.replace("__", "."): value for name, value in more.items()}
    return [str(x) for name, value in settings.items() for x in (f"--{name}", value)]


def expected(questions, n):
    """What must become of all samples: kept rows and dropped reasons, tokens of prompt and answer.

    Returns: {(question, sample): (thinking, answer)}, {(question, sample): reason}, (int, int)
    """
    kept, dropped, prompt, completion = {}, {}, 0, 0
    for row in questions:
        for sample in range(n):
            key = row["question"], sample
            kind, thinking, answer, *used = answer_of(key[0], seed_of(*key))
            prompt, completion = prompt + used[0], completion + used[1]
            if KINDS[kind]:
                dropped[key] = KINDS[kind]
            else:
                kept[key] = thinking, answer
    return kept, dropped, (prompt, completion)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
