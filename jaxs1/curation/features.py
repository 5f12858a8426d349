"""Features that a pool lacks: computed once, kept in a cache, in independent shards.

A `Feature` says which columns a value comes from and how. `compute` goes through the pool and
computes what neither the pool nor the cache has; `lookup` hands it to the table.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from jaxs1.config import UserError
from jaxs1.curation.cache import Cache
from jaxs1.curation.labelers import Model, NoAnswer, ask_all
from jaxs1.curation.pool import Pool
from jaxs1.curation.table import COLUMNS, read_text, read_value
from jaxs1.tasks import graders

#: Key, and the values of the columns that a feature needs.
Item = tuple[str, tuple[str, ...]]
#: Key, value and details for the cache; or why there is no value.
Result = tuple[str, Any, dict[str, Any]] | tuple[str, NoAnswer, dict[str, Any]]
TOKENIZED_AT_ONCE = 64
#: Questions one after the other that a model leaves unanswered before it is given up, at least.
PATIENCE = 4
SECONDS_BETWEEN_LINES = 30


@dataclass(frozen=True)
class Feature:
    """A column that can be computed.

    Args:
        name: of the column
        needs: columns that it is computed from; together they are the cache's key
        how: all else that the value depends on
        run: items to results, in any order
        where: who answers, for messages
        patience: failures one after the other that end the work; a question that was refused
            counts only as long as none was answered
    """

    name: str
    needs: tuple[str, ...]
    how: str
    run: Callable[[Iterator[Item]], Generator[Result]]
    where: str = ""
    patience: int = 1

    def cache_folder(self, folder: Path) -> Path:
        """Another `how` is another cache."""
        return folder / f"{self.name}-{_digest(self.how)[:8]}"

    def item(self, where: str, row: Mapping[str, Any]) -> Item | None:
        """The item of a row; None where a column that it needs is missing."""
        values = []
        for name in self.needs:
            value = row.get(name)
            text = read_value(where, name, value) if name in COLUMNS else read_text(value)
            if text is None:
                return None
            values.append(text)
        return _digest(*values), tuple(values)


@dataclass
class Tally:
    """What happened to a feature.

    Args:
        computed: values that were computed now
        cached: values that were in the cache
        unusable: of these, answers that could not be parsed and solutions that cannot be graded
        failed: questions that nobody answered
        reason: of the last failure
        fatal: the work ended because of it
    """

    computed: int = 0
    cached: int = 0
    unusable: int = 0
    failed: int = 0
    reason: str = ""
    fatal: bool = False


def length_feature(tokenizer: Any) -> Feature:
    """Tokens of the trace."""

    def run(items: Iterator[Item]) -> Generator[Result]:
        while batch := list(islice(items, TOKENIZED_AT_ONCE)):
            # no tokenizer reads half a surrogate pair
            traces = [trace.encode(errors="replace").decode() for _, (trace,) in batch]
            ids = tokenizer(traces, add_special_tokens=False)["input_ids"]
            for (key, _), tokens in zip(batch, ids, strict=True):
                yield key, len(tokens), {}

    # of BPE the vocabulary in its order is all: the same tokenizer may lie in another folder
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda x: x[1]))
    return Feature("length", ("thinking_trajectories",), f"tokenizer {_digest(vocabulary)}", run)


def correct_feature() -> Feature:
    """Is the attempt right; None where the solution has no final answer."""

    def run(items: Iterator[Item]) -> Generator[Result]:
        for key, (attempt, solution) in items:
            yield key, graders.is_correct(attempt, solution), {}

    return Feature("correct", ("attempt", "solution"), graders.VERSION, run)


def solved_feature(name: str, model: Model) -> Feature:
    """Does a model solve the question; None where the solution has no final answer."""
    prompt = read_prompt("solve")

    def run(items: Iterator[Item]) -> Generator[Result]:
        solutions: dict[str, str] = {}
        proofs: list[str] = []

        def prompts() -> Iterator[tuple[str, str]]:
            for key, (question, solution) in items:
                if graders.final_answer(solution) is None:
                    proofs.append(key)  # no answer could be graded: the model is not asked
                else:
                    solutions[key] = solution
                    yield key, prompt.replace("{question}", question)

        for key, answer in ask_all(model, prompts()):
            solution = solutions.pop(key)
            if isinstance(answer, NoAnswer):
                yield key, answer, {}
            else:
                yield key, graders.is_correct(answer, solution), {"answer": answer}
        for key in proofs:
            yield key, None, {}

    how = f"{model.identity} {prompt} {graders.VERSION}"
    return Feature(
        name, ("question", "solution"), how, run, model.where, max(PATIENCE, model.parallel)
    )


def subject_feature(model: Model, subjects: Mapping[str, str]) -> Feature:
    """The code of the question's subject; None where the answer names none of them.

    Args:
        model: who classifies
        subjects: code -> title and descriptions
    """
    listing = "\n".join(f"{code}: {text}" for code, text in subjects.items())
    prompt = read_prompt("subject").replace("{subjects}", listing)

    def run(items: Iterator[Item]) -> Generator[Result]:
        prompts = ((key, prompt.replace("{question}", question)) for key, (question,) in items)
        for key, answer in ask_all(model, prompts):
            if isinstance(answer, NoAnswer):
                yield key, answer, {}
            else:
                yield key, parse_subject(answer, subjects), {"answer": answer}

    how = f"{model.identity} {prompt}"
    return Feature("subject", ("question",), how, run, model.where, max(PATIENCE, model.parallel))


def parse_subject(answer: str, subjects: Iterable[str]) -> str | None:
    """The code in the last "Subject: CODE" of an answer, if it is a known one."""
    codes = re.findall(r"Subject:[\s*]*(\w+)", answer)
    return codes[-1] if codes and codes[-1] in subjects else None


def read_prompt(name: str) -> str:
    """One of our prompts."""
    return (resources.files("jaxs1.curation") / "prompts" / f"{name}.txt").read_text().strip()


def read_subjects(path: str) -> dict[str, str]:
    """Codes and what they stand for, from a JSON list of {code, title, descriptions}.

    Raises:
        UserError: the file is not such a list.
    """
    try:
        entries = json.loads(Path(path).read_text())
        return {e["code"]: f"{e['title']} ({'; '.join(e['descriptions'])})" for e in entries}
    except OSError as error:
        raise UserError(f"subjects={path}: cannot be read ({error.strerror})") from None
    except (ValueError, LookupError, TypeError):
        raise UserError(
            f"subjects={path}: must be a JSON list of objects with code, title and descriptions"
        ) from None


def compute(feature: Feature, pool: Pool, folder: Path, shard: tuple[int, int] | None) -> Tally:
    """Compute what neither the pool nor the cache has.

    Failures are counted; the work ends where no further question would be answered, or where
    `feature.patience` questions in a row were not. What was computed until then is kept.

    Args:
        feature: what is computed
        pool: for which questions
        folder: of the caches
        shard: (i, n) for the i-th of n parts; None for all

    Raises:
        UserError: an unreadable pool or cache.
    """
    cache = Cache(feature.cache_folder(folder), shard or (1, 1), writable=True)
    tally, in_a_row, last = Tally(), 0, time.monotonic()

    def todo() -> Iterator[Item]:
        seen = set[int]()
        for item in _lacking(feature, pool):
            key, number = item[0], int(item[0], 16)
            if (shard and number % shard[1] != shard[0] - 1) or number in seen:
                continue
            seen.add(number)
            if key in cache:
                tally.cached += 1
                tally.unusable += cache.get(key) is None
            elif tally.fatal:
                return
            else:
                yield item

    results = feature.run(todo())
    try:
        for key, value, details in results:
            if isinstance(value, NoAnswer):
                in_a_row += not (value.refused and tally.computed + tally.cached)
                tally.failed += 1
                tally.reason = str(value)
                tally.fatal |= value.fatal or in_a_row >= feature.patience
            else:
                in_a_row = 0
                tally.computed += 1
                tally.unusable += value is None
                cache.add(key, value, details)
            if time.monotonic() - last > SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                print(f"{feature.name:13} {tally.computed:,} computed so far", flush=True)
    finally:
        results.close()  # a model stops here, not when Python gets round to it
        cache.close()
    return tally


def _lacking(feature: Feature, pool: Pool) -> Iterator[Item]:
    """Items of the rows for which the pool has no value."""
    names = [feature.name, *feature.needs]
    for wheres, rows in pool.batches(names):
        for where, values in zip(wheres, rows, strict=True):
            row = dict(zip(names, values, strict=True))
            if read_value(where, feature.name, row[feature.name]) is None:
                item = feature.item(where, row)
                if item is not None:
                    yield item


def lookup(feature: Feature, folder: Path) -> Callable[[Mapping[str, Any]], Any]:
    """A function of a row that gives the value in the cache; None where there is none."""
    cache = Cache(feature.cache_folder(folder), writable=False)

    def find(row: Mapping[str, Any]) -> Any:
        item = feature.item(feature.name, row)
        return None if item is None else cache.get(item[0])

    return find


def _digest(*values: str) -> str:
    text = "\0".join(values)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
