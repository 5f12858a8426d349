"""Facts of `gpu_check` as JSON and Markdown, also of several runs together:

    python -m benchmarks.gpu_summary OUTPUT FIRST/facts.jsonl SECOND/facts.jsonl

Runs with the same commit, GPU and model belong together; of a part that was run again, the last run
counts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxs1.storage import read_jsonl

Figures = dict[str, Any]
#: Header fields that are equal in runs that belong together.
SAME = ("commit", "gpu", "model")


def read_results(files: Iterable[Path]) -> tuple[Figures, Figures]:
    """The last run's header, and part -> figures, with its facts, of all runs that belong to it.

    A part that began and did not end has failed: its run was killed.
    """
    headers: list[Figures] = []
    runs: list[Figures] = []
    for record in _records(files):
        kind = record.pop("kind")
        if kind == "header":
            headers.append(record)
            runs.append({})
            continue
        parts, name = runs[-1], record.pop("part")
        if kind == "begin":
            parts[name] = {"passed": False, "error": "not finished", "seconds": None, "facts": {}}
        elif kind == "fact":
            parts[name]["facts"][record.pop("fact")] = record
        else:
            parts[name] = {**record, "facts": parts[name]["facts"]}
    header = headers[-1]
    together: Figures = {}
    for other, parts in zip(headers, runs, strict=True):
        if all(other.get(key) == header.get(key) for key in SAME):
            # a skipped part keeps the results of an earlier run
            ran = {n: p for n, p in parts.items() if n not in together or "skipped" not in p}
            together |= ran
    return header, together


def write_results(output: str | Path, header: Figures, parts: Figures) -> tuple[Path, bool]:
    """NAME/DATE.json and .md; the path of the latter, and whether all parts passed.

    Args:
        output: folder that holds all GPUs' results
        header: hardware, software and settings; `gpu` names the folder
        parts: results from `read_results`
    """
    passed = all(part["passed"] for part in parts.values())
    folder = Path(output) / header["gpu"].lower().replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    data = {**header, "passed": passed, "parts": parts}
    text = folder / f"{header['date']}.md"
    text.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
    text.write_text(summary(header, parts))
    return text, passed


def summary(header: Figures, parts: Figures) -> str:
    """The results in Markdown."""
    first = ("gpu", "date")
    lines = [f"# {header['gpu']}, {header['date']}", "",
             ", ".join(f"{k} {v}" for k, v in header.items() if k not in first), "",
             "| part | passed | seconds | peak GB so far | |", "|---|---|---|---|---|"]  # fmt: skip
    for name, part in parts.items():
        verdict = "yes" if part["passed"] else "skipped" if "skipped" in part else "NO"
        peak = part.get("peak_bytes")
        lines.append(f"| {name} | {verdict} | {part['seconds']} | "
                     f"{'' if peak is None else f'{peak / 1e9:.1f}'} | "
                     f"{part.get('error', part.get('skipped', ''))} |")  # fmt: skip
    facts = {name: figures for part in parts.values() for name, figures in part["facts"].items()}
    for table in (_ceilings(facts), _steps(facts), _slice(facts), _times(facts), _train(facts)):
        lines += ["", *table] if table else []
    lines += ["", "## All facts", ""]
    for name, part in parts.items():
        for fact, figures in part["facts"].items():
            text = ", ".join(f"{k} {_short(v)}" for k, v in figures.items() if k != "at_s")
            lines.append(f"* {name}: {fact}: {text}")
    return "\n".join([*lines, ""])


def _ceilings(facts: Figures) -> list[str]:
    units = {"read": ("TB/s", 1e12), "write": ("TB/s", 1e12), "copy": ("TB/s", 1e12),
             "matmul": ("Tflop/s", 1e12)}  # fmt: skip
    rows = [
        f"| {name} | {rate / scale:.2f} {unit} |"
        for name, (unit, scale) in units.items()
        if (rate := _ceiling(facts, name))
    ]
    if rate := _ceiling(facts, "node"):
        rows.append(f"| smallest kernel | {1e6 / rate:.2f} us |")
    return ["| ceiling | measured |", "|---|---|", *rows] if rows else []


def _steps(facts: Figures) -> list[str]:
    """Steps of the complete model, forced and unforced, compared with the read ceiling."""
    read, rows = _ceiling(facts, "read"), []
    for name, r in facts.items():
        if not name.startswith("step, "):
            continue
        share = f"{r['bytes'] / read / r['unforced_s']:.0%}" if read else "no ceiling measured"
        label = f"batch {r['batch']}" + ", int8" * (r.get("weights") == "int8")
        rows.append(
            f"| {label} | {1e3 * r['unforced_s']:.2f} | {1e3 * r['forced_s']:.2f} | "
            f"{r['forced_s'] / r['unforced_s'] - 1:+.1%} | {share} | {r['context']} | "
            f"{r['steps']} | {r['batch'] / r['unforced_s']:.1f} |"
        )
    head = ["| step | unforced ms | forced ms | forced costs | of the read ceiling | context | "
            "steps per call | tokens/s |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    return [*head, *rows] if rows else []


def _slice(facts: Figures) -> list[str]:
    start = "slice step "
    rows = [
        f"| {name.removeprefix(start)} | {1e6 * r['median_s']:.0f} |"
        for name, r in facts.items()
        if name.startswith(start)
    ]
    return ["| step of the slice | us |", "|---|---|", *rows] if rows else []


def _times(facts: Figures) -> list[str]:
    """Kernels compared with the floor of the measured ceilings, XLA and cuBLAS."""
    read, matmul = _ceiling(facts, "read"), _ceiling(facts, "matmul")
    rows = []
    for name, r in facts.items():
        if not name.startswith("time of "):
            continue
        floor = max(r["bytes"] / read, r["flops"] / matmul) if read and matmul else None
        same = (r["kernel"], r["batch"])
        torch = [
            other["median"]
            for other in facts.values()
            if other.get("layout") and (other["kernel"], other["batch"]) == same
        ]
        rows.append(
            f"| {r['kernel']}, batch {r['batch']} | {1e6 * r['median']:.1f} | "
            + (f"{1e6 * floor:.1f} | {floor / r['median']:.0%}" if floor else "| ")
            + f" | {_microseconds(r['xla'])} | {_microseconds(min(torch, default=None))} |"
        )
    head = ["| kernel | us | floor us | of the floor | XLA us | cuBLAS us |",
            "|---|---|---|---|---|---|"]  # fmt: skip
    return [*head, *rows] if rows else []


def _train(facts: Figures) -> list[str]:
    rows = [
        f"| {r['remat']} | {1e3 * r['step_s']:.0f} | {r['tokens'] / r['step_s']:,.0f} | "
        + (f"{r['mfu']:.1%} |" if r["mfu"] else "|")
        for name, r in facts.items()
        if name.startswith("training step, ") and "step_s" in r
    ]
    head = ["| training, remat | ms a step | tokens/s | MFU |", "|---|---|---|---|"]
    return [*head, *rows] if rows else []


def _ceiling(facts: Figures, name: str) -> float | None:
    return facts.get(f"ceiling {name}", {}).get("per_second")


def _microseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e6 * seconds:.1f}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _records(files: Iterable[Path]) -> Iterable[Figures]:
    for file in files:
        for _, record in read_jsonl(file, appended=True):  # a kill may tear the last line
            yield record


def main(argv: Sequence[str]) -> int:
    """The command; returns 1 if a part did not pass."""
    if len(argv) < 2:
        print("usage: python -m benchmarks.gpu_summary OUTPUT FACTS.jsonl...", file=sys.stderr)
        return 2
    text, passed = write_results(argv[0], *read_results(map(Path, argv[1:])))
    print(text.read_text())
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
