"""A stand-in for the engine: sums, thought about a digit at a time, right once there were enough.

`python -m tests.evaluation.fake ARGUMENTS` is `python -m jaxs1.evaluate ARGUMENTS` with it. It is
slow where SECONDS is set, and writes what it was asked into the file ASKED.
"""

import hashlib
import os
import random
import re
import time
from importlib import import_module

from jaxs1.config import parse, run_command
from jaxs1.decoding.base_engine import BaseEngine
from jaxs1.decoding.loading import LoadedEngine
from jaxs1.decoding.outputs import Completion, Intervention, settings_of
from tests.curation.pools import write_jsonl

command = import_module("jaxs1.evaluate")

NATURAL, PER_WAIT = 40, 20
ANSWER_PREFIX = "\nFinal Answer:"


class Tokenizer:
    """One id a letter, and one for s1's special token."""

    chat_template = "yes"
    eos_token_id = None
    special = ("<|im_start|>", "\ue000")

    def __len__(self):
        return 0x110000

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [ord(c) for c in text.replace(*self.special)]}

    def decode(self, ids):
        return "".join(map(chr, ids)).replace(*reversed(self.special))

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        assert not tokenize and add_generation_prompt
        (message,) = messages
        assert message["role"] == "user"
        return f"<user>{message['content']}<assistant>"


class Engine(BaseEngine):
    """Finishes requests in an order of its own."""

    def __init__(self, seconds=0.0, asked=None, fingerprint="fake"):
        self.tokenizer, self.context, self.fingerprint = Tokenizer(), 10_000, fingerprint
        self.seconds, self.asked, self.requests = seconds, asked, []

    def run(self, requests):
        requests = list(requests)
        self.requests += requests
        for index in random.Random(len(requests)).sample(range(len(requests)), len(requests)):
            request = requests[index]
            time.sleep(self.seconds)
            if self.asked:
                with open(self.asked, "a") as file:
                    prompt = self.tokenizer.decode(request.prompt_ids)
                    file.write(f"{prompt} {request.seed} {request.thinking.max}\n")
            yield index, [self.complete(request, i) for i in range(request.n)]

    def complete(self, request, index):
        prompt = self.tokenizer.decode(request.prompt_ids)
        if "unanswerable" in prompt:
            return Completion(
                list(request.prompt_ids), error="prompt: is unanswerable", index=index
            )
        a, b = map(int, re.search(r"(\d+) and (\d+)", prompt).groups())
        asked = request.thinking
        drawn = f"{prompt} {request.seed} {index}" if request.sampling.temperature else prompt
        luck = random.Random(hashlib.sha256(drawn.encode()).digest())
        wanted = NATURAL + luck.randrange(20) + PER_WAIT * asked.num_waits
        wanted = wanted // 2 if "short amount" in prompt else wanted
        cut = asked.max != -1 and wanted > asked.max
        used = asked.max if cut else wanted
        right = used >= 20 + a + luck.randrange(1 + 40 * (request.sampling.temperature > 0))
        said = a + b + (0 if right else 1 + luck.randrange(2))
        answer = f" {said}\nbecause so it is" if cut else f"\nAnswer: {said:03}"
        waits = [Intervention(NATURAL + PER_WAIT * i, "wait", 0) for i in range(asked.num_waits)]
        answer_prefix = [Intervention(used, "answer_prefix", None)] if cut else []
        thinking = ("thought thought\n\n" * used)[:used]
        tokens = thinking + (ANSWER_PREFIX if cut else "") + answer
        forced = [used <= i < used + len(ANSWER_PREFIX) * cut for i in range(len(tokens))]
        return Completion(
            prompt_ids=list(request.prompt_ids),
            thinking_ids=list(map(ord, thinking)),
            answer_ids=list(map(ord, answer)),
            thinking=thinking,
            answer=answer,
            interventions=waits + answer_prefix,
            thinking_ended_by="budget" if cut else "model",
            finish_reason="stop",
            usage={
                "prompt_tokens": len(request.prompt_ids),
                "thinking_tokens": used,
                "answer_tokens": len(answer),
                "forced_tokens": sum(forced),
            },
            settings=settings_of(request),
            seed=request.seed,
            index=index,
            tokens=list(map(ord, tokens)),
            forced=forced,
        )


def sums(path, count=40, **more):
    """A task: question number i needs 20 + i tokens."""
    rows = [
        {"question": f"What is the sum of {i} and {2 * i + 1}?", "answer": 3 * i + 1, **more}
        for i in range(count)
    ]
    return write_jsonl(path, rows)


def config(*arguments):
    settings = ["--model", "fake", *map(str, arguments)]
    return parse(command.EvaluateConfig, settings, command="python -m jaxs1.evaluate")


def evaluate(config, engine):
    """The command behind its parser."""
    return command.evaluate(config, lambda _: LoadedEngine(engine, engine.fingerprint, "a fake"))


def main(argv):
    engine = Engine(float(os.environ.get("SECONDS", 0)), os.environ.get("ASKED"))
    evaluate(config(*argv), engine)


if __name__ == "__main__":
    run_command(main)
