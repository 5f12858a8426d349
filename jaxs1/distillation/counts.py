"""Counts of the samples of all questions, for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxs1.distillation.questions import TeacherQuestion
from jaxs1.distillation.verify import Sample


@dataclass
class Share:
    """Share of right answers of some questions.

    Args:
        questions: Questions with a graded answer
        right: Sum over them of the share of right answers
        solved: Questions with at least one right answer
        kept: Traces that were kept, of all questions
    """

    questions: int = 0
    right: float = 0.0
    solved: int = 0
    kept: int = 0

    def add(self, samples: Sequence[Sample]) -> None:
        """Count the samples of a question."""
        graded = [s.verdict.correct for s in samples if s.answer and s.verdict.correct is not None]
        self.kept += sum(not s.verdict.reason for s in samples)
        if graded:
            self.questions += 1
            self.right += sum(graded) / len(graded)
            self.solved += any(graded)


@dataclass
class SampleCounts:
    """Counts of all samples.

    Args:
        columns: Columns by whose values the questions are counted
        questions: Number of questions
        with_gold: Number of questions with a right answer
        reasons: Reason of dropping -> number of samples
        kept_tokens, dropped_tokens: Lengths of the answers of known length [tokens]
        total: Share of all questions
        groups: Column -> value -> share
    """

    columns: tuple[str, ...]
    questions: int = 0
    with_gold: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    kept_tokens: list[int] = field(default_factory=list)
    dropped_tokens: list[int] = field(default_factory=list)
    total: Share = field(default_factory=Share)
    groups: dict[str, dict[str, Share]] = field(default_factory=dict)

    def add(self, question: TeacherQuestion, samples: Sequence[Sample]) -> None:
        """Count the samples of a question."""
        self.questions += 1
        self.with_gold += bool(question.gold)
        self.total.add(samples)
        for column in self.columns:
            if (value := question.columns.get(column)) not in (None, ""):
                group = self.groups.setdefault(column, {})
                group.setdefault(str(value), Share()).add(samples)
        for sample in samples:
            if sample.verdict.reason:
                self.reasons[sample.verdict.reason] += 1
            if sample.answer and sample.answer.completion_tokens is not None:
                is_kept = not sample.verdict.reason
                tokens = self.kept_tokens if is_kept else self.dropped_tokens
                tokens.append(sample.answer.completion_tokens)


def ranked(group: dict[str, Share]) -> list[tuple[str, Share]]:
    """The values of a column, the most frequent first."""
    return sorted(group.items(), key=lambda item: (-item[1].questions, item[0]))
