"""Try thousands of damaged inputs: each must be accepted and work, or be refused in one line.

    python -m benchmarks.fuzz [--count 6000] [--seed 0] [--kinds config tokenizer]

A sound tiny model, its tokenizer and its data are damaged one place at a time: fields of
config.json and generation_config.json take every value of VALUES; tokenizer files, safetensors and
JSONL are cut off, overwritten and changed at random. Accepted inputs are used: the forward pass has
the right shape, and the logits of transformers where torch is installed. Refused means a
`UserError` of one line and at most LIMIT characters. Exit status 1 if any input does neither.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import jax

from benchmarks.fuzz_inputs import KINDS, Wrong
from jaxs1.config import UserError

#: Most characters of a message.
LIMIT = 300
#: Seconds after which an input counts as one that hangs.
PATIENCE = 60
#: Tolerance of logits relative to the largest one: that of the same comparison in the tests.
TOLERANCE = 2e-5


@dataclass(frozen=True)
class Outcome:
    """What became of one input.

    Args:
        kind: kind of input
        damage: what was changed
        result: accepted, refused or wrong
        message: the error, if any
    """

    kind: str
    damage: str
    result: str
    message: str = ""


def attempt(kind: str, damage: str, use: Callable[[], None]) -> Outcome:
    """Use a damaged input."""

    def hang(*_: object) -> None:
        raise Wrong(f"takes more than {PATIENCE} s")

    signal.signal(signal.SIGALRM, hang)
    signal.alarm(PATIENCE)
    try:
        use()
    except UserError as error:
        message = str(error)
        fits = "\n" not in message and len(message) <= LIMIT
        return Outcome(kind, damage, "refused" if fits else "wrong", message)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return Outcome(kind, damage, "wrong", f"{type(error).__name__}: {error}")
    finally:
        signal.alarm(0)
    return Outcome(kind, damage, "accepted")


def run(count: int, seed: int = 0, kinds: Sequence[str] = tuple(KINDS)) -> Iterator[Outcome]:
    """Outcomes of about `count` inputs, in a temporary folder that is the working directory."""
    total = sum(KINDS[kind][1] for kind in kinds)
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        for kind in kinds:
            inputs, share = KINDS[kind]
            rng = random.Random(f"{seed} {kind}")
            for damage, use in islice(inputs(rng, Path(kind)), max(1, count * share // total)):
                yield attempt(kind, damage, use)


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=6000, help="number of inputs")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--messages", action="store_true", help="print every message")
    options = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    counts: Counter[tuple[str, str]] = Counter()
    for outcome in run(options.count, options.seed, options.kinds):
        counts[outcome.kind, outcome.result] += 1
        if outcome.result == "wrong" or options.messages:
            print(f"{outcome.result}: {outcome.kind} {outcome.damage}: {outcome.message!r:.400}")
    print(f"{'kind':12} accepted  refused  wrong")
    for kind in options.kinds:
        accepted, refused, wrong = (counts[kind, r] for r in ("accepted", "refused", "wrong"))
        print(f"{kind:12} {accepted:8} {refused:8} {wrong:6}")
    print(f"{sum(counts.values())} inputs")
    return 1 if any(result == "wrong" for _, result in counts) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
