r"""Check how well answers are graded.

    python -m benchmarks.grading MATH500.jsonl GSM8K.jsonl

Every gold answer in every layout of LAYOUTS must be graded right and shuffled gold answers wrong;
spellings and near-misses of `grading_cases` must be graded right and wrong; math-verify's own test
expressions (grading/math_verify.jsonl) must agree unless the file gives a reason. Writes results.md
to --output. Exit status 1 if any of this does not hold.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.grading_cases import GradingCase, spellings
from benchmarks.grading_near_misses import near_misses
from jaxs1.data.sources import Source
from jaxs1.storage import read_jsonl
from jaxs1.tasks.graders import GRADERS

HERE = Path(__file__).parent / "grading"
#: `@` stands for the answer.
LAYOUTS = {
    "box": r"So it is \boxed{@}.",
    "box in $": r"Hence $\boxed{@}$.",
    "box in \\(": r"Hence \(x = \boxed{@}\), as wanted.",
    "box in \\[": "We get\n\\[\n\\boxed{@}\n\\]\nand are done.",
    "box with a stop inside": r"So it is \boxed{@.}",
    "fbox": r"\fbox{@}",
    "box in a box": r"\boxed{\boxed{@}}",
    "box in bold": r"**The result is $\boxed{@}$.**",
    "box, then a heading": "\\boxed{@}\n\n#### Note\nThis holds for all n.",
    "box, then prose": "\\boxed{@}\n\nThis answer is consistent.\n\n#### Why\nSo it is.",
    "wrong box, then stated": "A first try gives \\boxed{-977}.\n\nFinal Answer: @",
    "heading, then box": "### Final Answer\n\nThe answer is $\\boxed{@}$.",
    "Answer:": "Answer: @",
    "Answer: with a stop": "We sum up.\nAnswer: @.",
    "Answer: in $": "Final Answer: $@$.",
    "Answer: in \\(": "Final Answer: \\( @ \\).",
    "Answer: in bold": "Answer: **@**.",
    "Answer: in backticks": "Answer: `@`",
    "Answer:!": "Final Answer: @!",
    "Answer: and spaces": "Final Answer:   @  . \n",
    "Answer: without a space": "Answer:@",
    "Answer: and a line break": "Answer: $@$\\\\",
    "Answer: and a reason": "Answer: $@$, since nothing else is possible.",
    "answer: in small letters": "we add up.\nanswer: @",
    "ANSWER: in capitals": "ANSWER: @",
    "bold Answer:, next paragraph": "We sum up.\n\n**Answer:**\n\n@",
    "bold Answer, then a colon": "We sum up.\n\n**Answer**: @",
    "Answer:, display \\[": "Answer:\n\\[\n@\n\\]",
    "Answer:, display $$": "So we have it.\n\n**Final Answer:**\n$$@$$",
    "heading, display $$": "So we have it.\n\n**Final Answer**\n\n$$@$$",
    "heading of four": "1 + 1 is 2.\n\n#### Final Answer\n\n@",
    "The answer is": "We count.\n\nThe answer is @.",
    "The answer is, in $": "We count, so the answer is $@$.",
    "The final answer is:": "The final answer is: $@$.",
    "The final answer is, bold": "Thus, the final answer is **@**.",
    "Minerva": "Final Answer: The final answer is $@$. I hope it is correct.",
    "####": "We count.\n#### @",
    "####, after a box": "\\boxed{@} is it.\n#### @",
    "<answer>": "<answer>@</answer>",
    "Chinese": "\u56e0\u6b64\uff0c\u7b54\u6848\uff1a@\u3002",
    "no-break spaces": "Answer:\u00a0@\u00a0",
    "alone": "@",
    "alone, with a stop": "@.",
    "alone, in $": "$@$",
    "alone, in bold": "**@**",
    "alone, in underscores": "__@__",
    "last paragraph in $$": "We count.\n\n$$@$$",
    "the answer, before": "We count. So $@$ is the answer.",
    "quoted": 'Answer: "@"',
    "the answers are": "The answers are: $@$.",
    "item of a list": "- We count.\n- **Answer:** $@$",
    "answer, then an explanation": "Answer: $@$\n\nExplanation: the answer follows from the graph.",
    "fence": "Answer:\n\n```\n@\n```",
}
SHUFFLES = 6


def laid_out(layout: str, answer: str) -> str:
    """An answer in a layout."""
    return LAYOUTS[layout].replace("@", answer)


def fits(layout: str, answer: str) -> bool:
    """Whether a layout states such an answer: a last formula states no equation."""
    return layout != "last paragraph in $$" or " = " not in answer


def right(text: str, gold: str) -> bool:
    """Whether the grader accepts a text for a gold answer, which it reads like a benchmark's."""
    grader = GRADERS["math"]
    return grader.is_right(grader.extract(text), grader.extract(gold) or gold)


def layout_rows(golds: dict[str, Sequence[str]]) -> Iterator[list[str]]:
    """A row for each layout: its name and, for each data set, right / total."""
    for layout in LAYOUTS:
        row = [layout]
        for answers in golds.values():
            written = [gold for gold in answers if fits(layout, gold)]
            count = sum(right(laid_out(layout, gold), gold) for gold in written)
            row.append(f"{count} / {len(written)}")
        yield row


def accidents(golds: Sequence[str]) -> list[tuple[str, str]]:
    """Shuffled gold answers that are accepted for another."""
    found = []
    for seed in range(SHUFFLES):
        others = list(golds)
        random.Random(seed).shuffle(others)
        pairs = zip(others, golds, strict=True)
        found += [(a, b) for a, b in pairs if a != b and right(f"\\boxed{{{a}}}", b)]
    return found


def settle(
    golds: Sequence[str], cases: Callable[[str], Iterator[GradingCase]], want: bool
) -> tuple[Counter[str], list[tuple[str, str, str]]]:
    """The number of cases of each name, and those that the grader decides otherwise."""
    counts: Counter[str] = Counter()
    wrong = []
    for gold in dict.fromkeys(golds):
        for text, name in {
            text: name for name, text in cases(gold) if want or text != gold
        }.items():
            counts[name] += 1
            if right(text, gold) is not want:
                wrong.append((name, gold, text))
    return counts, wrong


def agreement(path: Path) -> tuple[int, list[dict[str, object]], list[dict[str, object]]]:
    """The number of math-verify's expressions; the explained and unexplained differences."""
    cases = [row for _, row in read_jsonl(path)]
    differ, unexplained = [], []
    for case in cases:
        if right(case["answer"], case["gold"]) is not case["equal"]:
            (differ if "reason" in case else unexplained).append(case)
    return len(cases), differ, unexplained


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    cells = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.grading", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("math500", help="file with MATH500, .jsonl")
    parser.add_argument("gsm8k", help="file with GSM8K's test questions, .jsonl")
    parser.add_argument(
        "--limit", type=int, default=500, help="maximum number of gold answers of each"
    )
    parser.add_argument("--output", type=Path, default=HERE, help="folder for results.md")
    args = parser.parse_args(argv)
    golds = {
        name: [row["answer"].rpartition("####")[2].strip() for _, row in Source(path).rows()]
        for name, path in (("MATH500", args.math500), ("GSM8K", args.gsm8k))
    }
    golds = {name: answers[: args.limit] for name, answers in golds.items()}
    lines, failed = report(golds)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return int(failed)


def report(golds: dict[str, Sequence[str]]) -> tuple[list[str], bool]:
    """The report's lines, and whether any check failed."""
    rows = [*layout_rows(golds)]
    lines = [
        "# The grader on gold answers",
        "",
        "Written by `python -m benchmarks.grading MATH500.jsonl GSM8K.jsonl`.",
        "",
        f"## {len(LAYOUTS)} layouts: right / written",
        "",
        *table(["layout", *golds], rows),
        "",
        f"## Shuffled gold answers, {SHUFFLES} times: taken for the other",
        "",
    ]
    for name, answers in golds.items():
        pairs = accidents(answers)
        listed = "".join(f"; `{a}` for `{b}`" for a, b in dict.fromkeys(pairs))
        lines.append(f"* {name}: {len(pairs)} of {SHUFFLES * len(answers):,}{listed}")
    failed = any(len({*cell.split(" / ")}) > 1 for row in rows for cell in row[1:])
    for title, cases, want in (
        ("spellings of one value: right", spellings, True),
        ("near-misses: wrong", near_misses, False),
    ):
        counts, wrong = settle(golds["MATH500"], cases, want)
        total = sum(counts.values())
        lines += ["", f"## {title} in {total - len(wrong):,} of {total:,}, from MATH500", ""]
        lines += table(["kind", "cases"], [[n, str(c)] for n, c in counts.most_common()])
        lines += [f"* {name}: `{gold}` and `{text}`" for name, gold, text in wrong]
        failed = failed or bool(wrong)
    total, differ, unexplained = agreement(HERE / "math_verify.jsonl")
    agreed = total - len(differ) - len(unexplained)
    lines += ["", f"## math-verify's own expressions: {agreed} of {total} agree", ""]
    lines += table(
        ["gold", "answer", "math-verify", "here the other, because"],
        [
            [f"`{c['gold']}`", f"`{c['answer']}`", ("not " * (not c["equal"])) + "equal", why(c)]
            for c in differ + unexplained
        ],
    )
    return lines, failed or bool(unexplained)


def why(case: dict[str, object]) -> str:
    """The reason of a difference."""
    return str(case.get("reason", "UNEXPLAINED"))


if __name__ == "__main__":
    sys.exit(main())
