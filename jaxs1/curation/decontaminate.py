"""Decontamination: which questions share eight consecutive words with a benchmark.

Text is lower-cased and split at whitespace, so "x," and "x" are different words. Any common n-gram
of `N` words counts; a shorter question has none.
Source: s1's data/decontaminate_util.py, with n = 8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from jaxs1.config import UserError
from jaxs1.curation.pool import Pool

N = 8


def ngrams(text: str) -> Iterator[str]:
    """All n-grams of `N` words of the normalised text, each as one string."""
    words = text.lower().split()
    return (" ".join(words[i : i + N]) for i in range(len(words) - N + 1))


class Benchmarks:
    """The n-grams of benchmarks, each with the first benchmark that has it.

    Args:
        questions: Name of a benchmark -> its questions
    """

    def __init__(self, questions: Mapping[str, list[str]]) -> None:
        self.names = tuple(questions)
        self._owner: dict[str, int] = {}
        for number, texts in enumerate(questions.values()):
            for text in texts:
                for ngram in ngrams(text):
                    self._owner.setdefault(ngram, number)

    def find(self, question: str) -> int:
        """The position in `names` of a benchmark that shares an n-gram with the question, or -1."""
        if self._owner:
            for ngram in ngrams(question):
                if (number := self._owner.get(ngram)) is not None:
                    return number
        return -1


def read_benchmarks(files: Mapping[str, str]) -> Benchmarks:
    """Read benchmark files.

    Args:
        files: Path of a JSONL or Parquet file, or hub id -> the column of its questions

    Raises:
        UserError: an unreadable or empty file, a missing column, a value that is not a string.
    """
    questions = {}
    for path, column in files.items():
        texts: list[str] = []
        pool = Pool(path, setting="benchmarks")
        if column not in pool.names:
            raise UserError(
                f"benchmarks: {path} has no column {column!r}, only "
                f"{', '.join(sorted(pool.names))}; name the right one"
            )
        for wheres, values in pool.batches([column]):
            for where, (text,) in zip(wheres, values, strict=True):
                if not isinstance(text, str):
                    raise UserError(
                        f"{where}: column {column!r} must hold a benchmark question as a string, "
                        f"is {type(text).__name__}; name the right column in --benchmarks"
                    )
                texts.append(text)
        if not texts:
            raise pool.is_empty()
        questions[path] = texts
    return Benchmarks(questions)
