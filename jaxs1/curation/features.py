"""Features that a pool lacks: computed once, cached, in independent shards.

A `Feature` defines which columns a value is computed from and how. `compute` computes the values
that neither the pool nor the cache has; `lookup` returns them for the table.
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
from jaxs1.curation.labelers import Labeler
from jaxs1.curation.pool import Pool
from jaxs1.curation.table import COLUMNS, read_text, read_value
from jaxs1.data.text import encodable
from jaxs1.inference.interface import NoAnswer, answer_all
from jaxs1.tasks import graders

#: Key, and the values of the columns that a feature is computed from.
Item = tuple[str, tuple[str, ...]]
#: Key, value and details for the cache; or the reason why there is no value.
Result = tuple[str, Any, dict[str, Any]] | tuple[str, NoAnswer, dict[str, Any]]
TOKENIZED_AT_ONCE = 64
#: Smallest number of consecutive failures after which a model is given up.
PATIENCE = 4
SECONDS_BETWEEN_LINES = 30


@dataclass(frozen=True)
class Feature:
    """A column that can be computed.

    Args:
        name: Name of the column
        needs: Columns that it is computed from; together they are the key of the cache
        how: Everything else that the value depends on
        run: Turns items into results, in any order
        where: Name of the model, for messages
        patience: Consecutive failures that end the work; a refused question counts only until
            another one was answered
    """

    name: str
    needs: tuple[str, ...]
    how: str
    run: Callable[[Iterator[Item]], Generator[Result]]
    where: str = ""
    patience: int = 1

    def cache_folder(self, folder: Path) -> Path:
        """The folder of its cache; it differs where `how` differs."""
        return folder / f"{self.name}-{_digest(self.how)[:8]}"

    def item(self, where: str, row: Mapping[str, Any]) -> Item | None:
        """The item of a row; None if a column that it needs is missing."""
        values = []
        for name in self.needs:
            value = row.get(name)
            text = read_value(where, name, value) if name in COLUMNS else read_text(value)
            if text is None:
                return None
            values.append(text)
        return _digest(*values), tuple(values)


@dataclass
class FeatureStats:
    """Counts of the values of a feature.

    Args:
        computed: Values that were computed in this run
        cached: Values that were in the cache
        unusable: Computed or cached values without content: answers that could not be parsed and
            solutions that cannot be graded
        failed: Questions without an answer
        reason: Reason of the last failure
        fatal: Whether that failure ended the work
    """

    computed: int = 0
    cached: int = 0
    unusable: int = 0
    failed: int = 0
    reason: str = ""
    fatal: bool = False


def length_feature(tokenizer: Any) -> Feature:
    """Length of the trace [tokens]."""

    def run(items: Iterator[Item]) -> Generator[Result]:
        while batch := list(islice(items, TOKENIZED_AT_ONCE)):
            traces = [encodable(trace) for _, (trace,) in batch]
            ids = tokenizer(traces, add_special_tokens=False)["input_ids"]
            for (key, _), tokens in zip(batch, ids, strict=True):
                yield key, len(tokens), {}

    # the ordered vocabulary defines a BPE tokenizer, whatever folder it is stored in
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda x: x[1]))
    return Feature("length", ("thinking_trajectories",), f"tokenizer {_digest(vocabulary)}", run)


def correct_feature() -> Feature:
    """Whether the attempt is correct; None if the solution has no final answer."""

    def run(items: Iterator[Item]) -> Generator[Result]:
        for key, (attempt, solution) in items:
            yield key, graders.is_correct(attempt, solution), {}

    return Feature("correct", ("attempt", "solution"), graders.VERSION, run)


def solved_feature(name: str, model: Labeler) -> Feature:
    """Whether a model solves the question; None if the solution has no final answer."""
    prompt = read_prompt("solve")

    def run(items: Iterator[Item]) -> Generator[Result]:
        solutions: dict[str, str] = {}
        proofs: list[str] = []

        def prompts() -> Iterator[tuple[str, str]]:
            for key, (question, solution) in items:
                if graders.final_answer(solution) is None:
                    proofs.append(key)  # no answer could be graded: skip the model
                else:
                    solutions[key] = solution
                    yield key, prompt.replace("{question}", question)

        for key, answer in answer_all(model, prompts()):
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


def subject_feature(model: Labeler, subjects: Mapping[str, str]) -> Feature:
    """The code of the question's subject; None if the answer names no known one.

    Args:
        model: Model that classifies the questions
        subjects: Code -> title and descriptions
    """
    listing = "\n".join(f"{code}: {text}" for code, text in subjects.items())
    prompt = read_prompt("subject").replace("{subjects}", listing)

    def run(items: Iterator[Item]) -> Generator[Result]:
        prompts = ((key, prompt.replace("{question}", question)) for key, (question,) in items)
        for key, answer in answer_all(model, prompts):
            if isinstance(answer, NoAnswer):
                yield key, answer, {}
            else:
                yield key, parse_subject(answer, subjects), {"answer": answer}

    how = f"{model.identity} {prompt}"
    return Feature("subject", ("question",), how, run, model.where, max(PATIENCE, model.parallel))


def parse_subject(answer: str, subjects: Iterable[str]) -> str | None:
    """The code in the last "Subject: CODE" of an answer; None for an unknown one."""
    codes = re.findall(r"Subject:[\s*]*(\w+)", answer)
    return codes[-1] if codes and codes[-1] in subjects else None


def read_prompt(name: str) -> str:
    """The text of a prompt in the folder prompts/."""
    return (resources.files("jaxs1.curation") / "prompts" / f"{name}.txt").read_text().strip()


def read_subjects(path: str) -> dict[str, str]:
    """Codes and their descriptions, from a JSON list of {code, title, descriptions}.

    Raises:
        UserError: the file cannot be read or is not such a list.
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


def compute(
    feature: Feature, pool: Pool, folder: Path, shard: tuple[int, int] | None
) -> FeatureStats:
    """Compute the values that neither the pool nor the cache has.

    Failures are counted; the work ends after a fatal failure, or after `feature.patience`
    consecutive ones. The values computed until then stay in the cache.

    Args:
        feature: Feature to compute
        pool: Pool of questions
        folder: Folder of all caches
        shard: (i, n) for the i-th of n parts; None for everything

    Raises:
        UserError: an unreadable pool or cache.
    """
    cache = Cache(feature.cache_folder(folder), shard or (1, 1), writable=True)
    stats, in_a_row, last = FeatureStats(), 0, time.monotonic()

    def todo() -> Iterator[Item]:
        seen = set[int]()
        for item in _lacking(feature, pool):
            key, number = item[0], int(item[0], 16)
            if (shard and number % shard[1] != shard[0] - 1) or number in seen:
                continue
            seen.add(number)
            if key in cache:
                stats.cached += 1
                stats.unusable += cache.get(key) is None
            elif stats.fatal:
                return
            else:
                yield item

    results = feature.run(todo())
    try:
        for key, value, details in results:
            if isinstance(value, NoAnswer):
                in_a_row += not (value.refused and stats.computed + stats.cached)
                stats.failed += 1
                stats.reason = str(value)
                stats.fatal |= value.fatal or in_a_row >= feature.patience
            else:
                in_a_row = 0
                stats.computed += 1
                stats.unusable += value is None
                cache.add(key, value, details)
            if time.monotonic() - last > SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                print(f"{feature.name:13} {stats.computed:,} computed so far", flush=True)
    finally:
        results.close()  # stops the model now, not when the generator is collected
        cache.close()
    return stats


def _lacking(feature: Feature, pool: Pool) -> Iterator[Item]:
    """Items of the rows without a value in the pool."""
    names = [feature.name, *feature.needs]
    for wheres, rows in pool.batches(names):
        for where, values in zip(wheres, rows, strict=True):
            row = dict(zip(names, values, strict=True))
            if read_value(where, feature.name, row[feature.name]) is None:
                item = feature.item(where, row)
                if item is not None:
                    yield item


def lookup(feature: Feature, folder: Path) -> Callable[[Mapping[str, Any]], Any]:
    """A function of a row that returns its cached value; None without one."""
    cache = Cache(feature.cache_folder(folder), writable=False)

    def find(row: Mapping[str, Any]) -> Any:
        item = feature.item(feature.name, row)
        return None if item is None else cache.get(item[0])

    return find


def _digest(*values: str) -> str:
    text = "\0".join(values)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
