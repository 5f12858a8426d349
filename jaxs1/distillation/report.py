"""The report of a teacher's traces: report.json for programs, report.md and a picture for people.

Shares of right answers have Wilson's intervals at 95 %, over questions: the samples of one question
are not independent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxs1.distillation.account import Account
from jaxs1.distillation.config import TracesConfig
from jaxs1.distillation.counts import SampleCounts, Share, ranked
from jaxs1.distillation.plots import draw
from jaxs1.distillation.verify import REASONS
from jaxs1.evaluation.metrics import wilson
from jaxs1.storage import write_text

REPORT, PICTURE = "report.md", "report.png"
QUANTILES = (0, 10, 50, 90, 100)
MOST_LINES = 40


def write_report(config: TracesConfig, counts: SampleCounts, account: Account) -> list[str]:
    """Write report.json, report.md and report.png; returns their names.

    Args:
        config: Settings
        counts: Counts of all samples
        account: Tokens and cost of all samples
    """
    folder = Path(config.output)
    found = figures(config, counts, account)
    write_text(folder / "report.json", json.dumps(found, indent=2) + "\n")
    draw(counts, folder / PICTURE)
    write_text(folder / REPORT, markdown(found, counts))
    return ["report.json", REPORT, PICTURE]


def figures(config: TracesConfig, counts: SampleCounts, account: Account) -> dict[str, Any]:
    """All figures of the report as JSON."""
    return {
        "teacher": config.model,
        "questions": counts.questions,
        "questions_with_answer": counts.with_gold,
        "samples_per_question": config.n,
        "keep": config.keep,
        "kept": counts.total.kept,
        "dropped": {name: counts.reasons[name] for name in REASONS if counts.reasons[name]},
        "prompt_tokens": account.prompt_tokens,
        "completion_tokens": account.completion_tokens,
        "price": vars(config.price),
        "cost": account.cost,
        "tokens": {
            name: _quantiles(lengths)
            for name, lengths in (("kept", counts.kept_tokens), ("dropped", counts.dropped_tokens))
            if lengths
        },
        "right": _share(counts.total),
        "right_by": {
            column: {value: _share(share) for value, share in ranked(group)}
            for column, group in counts.groups.items()
        },
    }


def markdown(found: dict[str, Any], counts: SampleCounts) -> str:
    """The report for people."""
    n, kept = found["samples_per_question"], found["kept"]
    lines = [
        f"# {kept:,} traces of {found['teacher']} for {found['questions']:,} questions",
        "",
        f"{n} {'sample' if n == 1 else 'samples'} per question, kept: {found['keep']}. "
        f"{found['questions_with_answer']:,} of the questions have an answer to check against.",
        "",
        *_cost_lines(found),
        "",
        f"![lengths, reasons and shares of right answers]({PICTURE})",
    ]
    if found["dropped"]:
        lines += ["", "## Dropped", ""]
        lines += _table(
            ("reason", "samples", ""),
            [(name, f"{count:,}", REASONS[name]) for name, count in found["dropped"].items()],
        )
    if found["tokens"]:
        lines += ["", "## Lengths of thinking and answer [tokens]", ""]
        names = [f"{q} %" for q in QUANTILES]
        lines += _table(
            ("", *names, "mean"),
            [
                (which, *(f"{row[name]:,.0f}" for name in (*names, "mean")))
                for which, row in found["tokens"].items()
            ],
        )
    if counts.total.questions:
        lines += ["", "## Right answers", ""]
        lines += _table(_HEADER, [_row("all", counts.total)])
    for column, group in counts.groups.items():
        shares = ranked(group)
        lines += ["", f"## Right answers by {_cell(column)}", ""]
        rows = [_row(value, share) for value, share in shares[:MOST_LINES]]
        if len(shares) > MOST_LINES:
            rows.append((f"{len(shares) - MOST_LINES:,} more", *[""] * (len(_HEADER) - 1)))
        lines += _table(_HEADER, rows)
    return "\n".join(lines) + "\n"


def _cost_lines(found: dict[str, Any]) -> list[str]:
    price, kept = found["price"], found["kept"]
    lines = [
        f"{found['prompt_tokens']:,} prompt tokens, {found['completion_tokens']:,} tokens of "
        "thinking and answers, as the teacher reported them."
    ]
    if price["input"] or price["output"]:
        each = f", ${found['cost'] / kept:,.4f} for each trace that was kept" if kept else ""
        lines[0] += (
            f" At ${price['input']:g} and ${price['output']:g} per million: "
            f"${found['cost']:,.4f}{each}."
        )
    return lines


_HEADER = ("", "questions", "right [%]", "95 %", "solved [%]", "traces kept")


def _row(name: str, share: Share) -> Sequence[str]:
    """A line of the tables of right answers; solved: at least one sample is right."""
    if not share.questions:
        return _cell(name), "0", "", "", "", f"{share.kept:,}"
    found = _share(share)
    return (
        _cell(name),
        f"{share.questions:,}",
        f"{100 * found['right']:.1f}",
        f"{100 * found['low']:.1f} to {100 * found['high']:.1f}",
        f"{100 * share.solved / share.questions:.1f}",
        f"{share.kept:,}",
    )


def _share(share: Share) -> dict[str, Any]:
    low, high = wilson(share.right, share.questions)
    right = share.right / share.questions if share.questions else None
    return {**vars(share), "right": right, "low": low, "high": high}


def _quantiles(lengths: Sequence[int]) -> dict[str, float]:
    values = np.percentile(lengths, QUANTILES).tolist()
    return {f"{q} %": v for q, v in zip(QUANTILES, values, strict=True)} | {
        "mean": float(np.mean(lengths))
    }


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def _cell(text: str) -> str:
    """The start of a text, escaped from Markdown and HTML."""
    line = " ".join(text.split())[:80]
    return re.sub(r"[\\|$*`<!\[]", r"\\\g<0>", line)
