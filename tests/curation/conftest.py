"""A small pool without features, the means to compute them, and the command as a function."""

import itertools
import os
import random
import signal
import subprocess
import sys

import pytest

from jaxs1.data.tokenizer import train_tokenizer
from tests.conftest import ROOT
from tests.curation.pools import clean_row, write_jsonl
from tests.curation.server import number_of

FEATURES = ("length", "correct", "solved_small", "solved_large", "subject")
SUBJECTS = '[{"code": "03", "title": "Logic", "descriptions": ["Sets"]}, ' \
    '{"code": "11", "title": "Number theory", "descriptions": ["Primes"]}]'  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["thinking about " + str(n) for n in range(50)], folder)
    return folder


@pytest.fixture
def subjects(tmp_path):
    path = tmp_path / "subjects.json"
    path.write_text(SUBJECTS)
    return path


def bare_pool(folder, n):
    """A pool without any feature; row i is solved by the answer i."""
    rng = random.Random(0)
    rows = [clean_row(i, rng) for i in range(n)]
    rows = [{k: v for k, v in row.items() if k not in FEATURES} for row in rows]
    for i, row in enumerate(rows):
        row["thinking_trajectories"] = ["thinking " * (i % 17 + 1)]
        row["attempt"] = f"So it is \\boxed{{{i if i % 3 else -1}}}"
    return write_jsonl(folder / "pool.jsonl", rows), rows


def reply(prompt):
    """Solves every fourth question; every seventh subject is nonsense."""
    i = number_of(prompt)
    if "Subject: CODE" in prompt:
        return "no idea" if i % 7 == 0 else f"It is obvious.\nSubject: {('03', '11')[i % 2]}"
    return f"Thus \\boxed{{{i if i % 4 == 0 else 'x'}}}"


def command(pool, folder, *more):
    settings = {"input": pool, "output": folder / "out", "stages.decontamination": "false"}
    return [
        "jaxs1.curate",
        *("--config", "configs/curate_s1k.yaml"),
        *itertools.chain(*((f"--{k}", v) for k, v in settings.items())),
        *more,
    ]


def feature_settings(url, tokenizer, subjects, folder, parallel=4):
    settings = {
        "features.cache": folder / "cache",
        "features.grade": "true",
        "subjects": subjects,
    }
    if tokenizer is not None:
        settings["features.tokenizer"] = tokenizer
    for name in ("small", "large", "classifier"):
        settings |= {
            f"features.{name}.url": url,
            f"features.{name}.model": name,
            f"features.{name}.parallel": parallel,
            f"features.{name}.backoff": 0.01,
            f"features.{name}.retries": 2,
            f"features.{name}.timeout": 5,
        }
    return [str(x) for k, v in settings.items() for x in (f"--{k}", v)]


def start(arguments):
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "NO_PROXY": "127.0.0.1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.communicate()
