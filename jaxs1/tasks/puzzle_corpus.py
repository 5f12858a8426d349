"""The laptop demo's corpus: a teacher's traces, the base model's documents, and a tokenizer.

The teacher searches through the candidates of a question (`puzzles.candidates`). One pair (x, y) is
one line, with a verdict against the target after each value:

    a) 7*4=28 +6=34 high -6=22 high +2=30 high -2=26 high

The lines are lettered, because a Wait, or a line that is written again, would make the student lose
its place: without letters it counts lines instead of finding the pair behind the last one.

The teacher's patience and its give-up rate are designed: its traces are too short, like s1's, which
must be stated wherever the curve is shown. The arithmetic and the search are learnt.

Two stages, as in s1. The base corpus carries the skill: it has no chat tokens, no Wait and no
answers, and never stops at a hit. The 1,000 traces carry the format and the habit.

This file is independent of models and training.
Run it: `python -m jaxs1.tasks.puzzle_corpus OUT [--seed N]`.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxs1.data.chat import reasoning
from jaxs1.data.tokenizer import load_tokenizer, train_tokenizer
from jaxs1.storage import JsonlWriter, atomic_folder
from jaxs1.tasks.puzzles import (
    DIGITS,
    VALUES,
    Candidate,
    Problem,
    all_problems,
    candidates,
    is_correct,
    sample_problems,
    search_lines,
)

EVALUATION_QUESTIONS = 400  # in each of dev.jsonl and test.jsonl
TRAINING_QUESTIONS = 4000  # in train.jsonl
BASE_MIXTURE = {"worksheet": 0.5, "compare": 0.2, "calculate": 0.15, "spot": 0.1, "express": 0.05}
#: Share of worksheets whose six lines are drawn at random, with repetitions: there the letter alone
#: determines the pair. Where the pair can be had by counting lines, it is lost after a Wait.
DRAWN_WORKSHEETS = 0.5
#: Length of a page [tokens], longer than the longest trace: a fine-tuned model does badly at
#: positions that the base model never saw, and each Wait leads further there.
PAGE = 383  # and a separator: rows of 384 are full
OPEN_PAGES = 32
#: Numbers that become one token each: with a token per digit the verdict `yes` is hardly learnt.
TWO_DIGITS = [str(value) for value in VALUES if value > 9]
LETTERS = [f"{letter}) " for letter in "abcdef"]  # of the six lines, one token each
WORDS = "system\nuser\nassistant\nthink\nanswer\n"  # so that each becomes one token


def verdict(value: int, target: int) -> str:
    """Compare a value with the target: `low`, `high` or `yes`."""
    return "yes" if value == target else "high" if value > target else "low"


def check_line(letter: str, tried: Sequence[Candidate], target: int) -> str:
    """A line that checks candidates of one pair, `e) 4*2=8 +7=15 high -7=1 yes`."""
    checks = (f"{c.steps[1]} {verdict(c.value, target)}" for c in tried)
    return letter + " ".join([tried[0].steps[0], *checks])


@dataclass(frozen=True)
class Teacher:
    """A searcher of limited patience; the source of the SFT traces.

    It begins at the first line or, with probability `rotate`, at a random one, and goes around. It
    writes `pairs_per_look` lines and stops at a hit. Without one it gives up with probability
    `give_up` and answers its last failed attempt, else it writes `Wait` and one more line, again
    and again. After a hit it writes, with probability `recheck` and repeatedly, `Wait` and the line
    of the hit. `max_waits` bounds both kinds of Wait together. `recheck_late` (default: `recheck`)
    is for a hit that came after a Wait: the lever against losing such a hit.

    Between two of the first lines it writes a `Wait` with probability `hesitate`. With that and
    `rotate` the next line follows a Wait as often as a re-check does, and every line of the six:
    else the student takes each Wait for a re-check. Greedy decoding takes the more frequent choice,
    so `give_up` and `recheck` stay away from 1/2, where training decides by chance.
    """

    pairs_per_look: int = 3
    give_up: float = 0.6
    max_waits: int = 6
    hesitate: float = 0.3
    rotate: float = 0.5
    recheck: float = 0.4
    recheck_late: float | None = None

    def trace(self, problem: Problem, rng: np.random.Generator) -> dict[str, Any]:
        """Think about a problem; the result has the form of a record of s1K.

        Keys: question, thinking_trajectories ([the lines between think and answer]), attempt
        (`Final Answer: 4*2-7`), numbers, target, answer_correct.
        """
        lines, waits = [], 0
        sheet = list(zip(LETTERS, search_lines(problem.numbers), strict=True))
        first = rng.integers(6) if rng.random() < self.rotate else 0
        for number, (letter, line) in enumerate(sheet[first:] + sheet[:first]):
            if number >= self.pairs_per_look:
                if waits == self.max_waits or rng.random() < self.give_up:
                    break
                lines.append("Wait")
                waits += 1
            elif number and waits < self.max_waits and rng.random() < self.hesitate:
                lines.append("Wait")
                waits += 1
            hits = [i for i, c in enumerate(line) if c.value == problem.target]
            tried = line[: hits[0] + 1] if hits else line
            lines.append(check_line(letter, tried, problem.target))
            if hits:
                late = self.recheck if self.recheck_late is None else self.recheck_late
                recheck = late if waits else self.recheck
                while waits < self.max_waits and rng.random() < recheck:
                    lines += ["Wait", lines[-1]]
                    waits += 1
                break
        answer = tried[-1].expression
        return problem.record() | {
            "thinking_trajectories": ["\n".join(lines)],
            "attempt": f"Final Answer: {answer}",
            "answer_correct": is_correct(problem, answer),
        }


def base_document(rng: np.random.Generator) -> str:
    """One document of the base corpus, its kind drawn from BASE_MIXTURE; ends with a newline.

    worksheet: a training question and all six lines in order, or six lines drawn at random.
    spot: a training question and one candidate of it, half of the time a hit.
    The drills contain no question. They draw from all of 1..7, so they include three digits of a
    held-out set, but never its four together, nor a question about it:
    compare: a target and 16 values, a third equal to it, a third within 5 of it, a third any.
    calculate: 8 lines `4*2=8 +7=15 -7=1`.  express: 8 lines in the answer's form, `4*2-7=1`.
    """
    kind = rng.choice(list(BASE_MIXTURE), p=list(BASE_MIXTURE.values()))
    if kind in ("worksheet", "spot"):
        problems = all_problems("train")
        problem = problems[rng.integers(len(problems))]
        lines = [problem.question]
    if kind == "worksheet":
        numbered = zip(LETTERS, search_lines(problem.numbers), strict=True)
        sheet = [check_line(letter, line, problem.target) for letter, line in numbered]
        if rng.random() < DRAWN_WORKSHEETS:
            sheet = [sheet[i] for i in rng.integers(6, size=6)]
        lines += sheet
    elif kind == "spot":
        hit = rng.random() < 0.5
        pool = [c for c in candidates(problem.numbers) if (c.value == problem.target) == hit]
        candidate = pool[rng.integers(len(pool))]
        letter = LETTERS[candidates(problem.numbers).index(candidate) // 4]
        lines.append(check_line(letter, [candidate], problem.target))
    elif kind == "compare":
        target = int(rng.integers(1, VALUES.stop))
        near = [v for v in VALUES if 0 < abs(v - target) <= 5]
        pools = ([target], near, list(VALUES))
        values = [rng.choice(pools[rng.integers(3)]) for _ in range(16)]
        lines = [f"Make {target}", *(f"={v} {verdict(v, target)}" for v in values)]
    else:
        lines = []
        for x, y, z in (rng.permutation(DIGITS)[:3] for _ in range(8)):
            plus, minus = (Candidate(int(x), int(y), sign, int(z)) for sign in "+-")
            one = plus if rng.random() < 0.5 else minus
            both = " ".join([*plus.steps, minus.steps[1]])
            lines.append(both if kind == "calculate" else f"{one.expression}={one.value}")
    return "\n".join(lines) + "\n"


def fill_pages(documents: Iterable[str], lengths: Iterable[int]) -> list[str]:
    """Documents on pages of at most `PAGE` tokens, each on the first open page where it fits."""
    pages: list[str] = []
    still_open: list[tuple[int, list[str]]] = []  # tokens left, documents
    for document, length in zip(documents, lengths, strict=True):
        fits = (i for i, (left, _) in enumerate(still_open) if length < left)
        index = next(fits, None)
        if index is None:
            if len(still_open) == OPEN_PAGES:
                pages.append("\n".join(still_open.pop(0)[1]))
            still_open.append((PAGE - length, [document]))
        else:
            left, held = still_open[index]
            still_open[index] = (left - length - 1, [*held, document])  # and a blank line
    return pages + ["\n".join(held) for _, held in still_open]


def write_corpus(
    folder: str | Path,
    seed: int = 0,
    base_documents: int = 11_770,
    sft_examples: int = 1000,
    teacher: Teacher | None = None,
) -> dict[str, Any]:
    """Write base.jsonl, sft.jsonl, train.jsonl, dev.jsonl, test.jsonl and tokenizer/; a summary.

    `seed` draws the base corpus, the traces and train.jsonl, which has further questions of the
    training split, without traces, for reinforcement learning; the dev and test questions are the
    same for every seed, so that seeds can be compared. With the default, base.jsonl holds about
    1.43M tokens, in pages of `PAGE` that are nearly full. In the summary `base_tokens` counts the
    separators,
    `trace_tokens` the complete chat and `thinking_tokens` only the lines.

    Raises:
        UserError: the folder exists; any `OSError`. The folder appears complete or not at all.
    """
    with atomic_folder(Path(folder)) as partial:
        return _write_files(partial, seed, base_documents, sft_examples, teacher or Teacher())


def _write_files(
    folder: Path, seed: int, base_documents: int, sft_examples: int, teacher: Teacher
) -> dict[str, Any]:
    base_rng, sft_rng = (np.random.default_rng([seed, stage]) for stage in (0, 1))
    documents = [base_document(base_rng) for _ in range(base_documents)]
    traces = [teacher.trace(p, sft_rng) for p in sample_problems("train", sft_examples, sft_rng)]
    texts = [f"{t['question']}\n{t['thinking_trajectories'][0]}\n{t['attempt']}" for t in traces]
    files: dict[str, list[dict[str, Any]]] = {"base": [], "sft": traces}  # pages need the tokenizer
    shown = {trace["question"] for trace in traces}
    further = sample_problems("train", len(all_problems("train")), np.random.default_rng([seed, 2]))
    unseen = [problem for problem in further if problem.question not in shown]
    files["train"] = [problem.record() for problem in unseen[:TRAINING_QUESTIONS]]
    for split in ("dev", "test"):
        problems = sample_problems(split, EVALUATION_QUESTIONS, np.random.default_rng(0))
        files[split] = [problem.record() for problem in problems]
    train_tokenizer([WORDS, *documents, *texts], folder / "tokenizer", words=TWO_DIGITS + LETTERS)
    lengths = map(len, load_tokenizer(str(folder / "tokenizer"))(documents)["input_ids"])
    files["base"] = [{"text": page} for page in fill_pages(documents, lengths)]
    for name, records in files.items():
        with JsonlWriter(folder / f"{name}.jsonl", new=True) as writer:
            writer.write(*records)
    return _summary(files, folder / "tokenizer")


def _summary(files: dict[str, list[dict[str, Any]]], tokenizer_folder: Path) -> dict[str, Any]:
    tokenizer = load_tokenizer(str(tokenizer_folder))

    def lengths(texts: list[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(texts)["input_ids"]]

    traces = files["sft"]
    thinking = [trace["thinking_trajectories"][0] for trace in traces]
    chats: list[str] = []
    for trace, thoughts in zip(traces, thinking, strict=True):
        turns = (("user", trace["question"]), ("assistant", reasoning(thoughts, trace["attempt"])))
        messages = [{"role": role, "content": content} for role, content in turns]
        chats.append(str(tokenizer.apply_chat_template(messages, tokenize=False)))
    return {
        **{f"{name}_records": len(records) for name, records in files.items()},
        "base_tokens": sum(n + 1 for n in lengths([doc["text"] for doc in files["base"]])),
        "vocabulary": len(tokenizer),
        "trace_tokens_mean": float(np.mean(lengths(chats))),
        "trace_tokens_max": max(lengths(chats)),
        "thinking_tokens_mean": float(np.mean(lengths(thinking))),
        "thinking_tokens_max": max(lengths(thinking)),
        "share_correct": float(np.mean([trace["answer_correct"] for trace in traces])),
        "share_with_wait": float(np.mean(["Wait" in thoughts for thoughts in thinking])),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Write a corpus and print its summary."""
    parser = argparse.ArgumentParser(description="Write the corpus of the laptop demo.")
    parser.add_argument("out", type=Path, help="folder to create")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the corpus")
    arguments = parser.parse_args(argv)
    try:
        summary = write_corpus(arguments.out, arguments.seed)
    except ValueError as error:
        parser.error(str(error))
    for name, value in summary.items():
        shown = f"{value:,.3f}" if isinstance(value, float) else f"{value:,}"
        print(f"{name.replace('_', ' '):22}{shown:>12}")


if __name__ == "__main__":
    main()
