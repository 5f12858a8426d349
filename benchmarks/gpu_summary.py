"""What `gpu_check` found, as JSON and Markdown."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import jax

from jaxs1.config import one_line

Figures = dict[str, Any]


def header(device: jax.Device, **settings: Any) -> Figures:
    """What was run where."""
    driver = one_line(device.client.platform_version)
    return {"gpu": device.device_kind, "jax": jax.__version__, "driver": driver, **settings}


def write(output: str, header: Figures, parts: Figures) -> bool:
    """NAME/DATE.json and .md; whether all parts passed.

    Args:
        output: folder that holds all GPUs' results
        header: what was run where; `gpu` names the folder
        parts: as from `gpu_check.check`
    """
    passed = all(part["passed"] for part in parts.values())
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    header = {**header, "date": date}
    folder = Path(output) / header["gpu"].lower().replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    data = {**header, "passed": passed, "parts": parts}
    (folder / f"{date}.json").write_text(json.dumps(data, indent=1) + "\n")
    text = summary(header, parts)
    (folder / f"{date}.md").write_text(text)
    print(f"\n{text}\nwritten: {folder}/{date}.json and .md; all passed: {passed}")
    return passed


def summary(header: Figures, parts: Figures) -> str:
    """Markdown."""
    lines = [f"# {header['gpu']}, {header['date']}", "",
             ", ".join(f"{k} {v}" for k, v in header.items() if k not in ("gpu", "date")), "",
             "| part | passed | seconds | |", "|---|---|---|---|"]  # fmt: skip
    for name, part in parts.items():
        rest = {k: v for k, v in part.items() if k not in ("passed", "seconds", "rows")}
        lines.append(f"| {name} | {'yes' if part['passed'] else 'NO'} | {part['seconds']} | "
                     f"{', '.join(f'{k} {_short(v)}' for k, v in rest.items())} |")  # fmt: skip
    steps, times = (parts.get(name, {}).get("rows", []) for name in ("steps", "times"))
    if steps:
        lines += ["", "| step | unforced ms | forced ms | forced costs | of the floor |",
                  "|---|---|---|---|---|"]  # fmt: skip
    for r in steps:
        share = f"{r['floor'] / r['unforced']:.0%}" if r["floor"] else "no ceiling measured"
        lines.append(
            f"| batch {r['batch']} | {1e3 * r['unforced']:.2f} | {1e3 * r['forced']:.2f} | "
            f"{r['forced'] / r['unforced'] - 1:+.1%} | {share} |"
        )
    if times:
        lines += ["", "| kernel | us | floor us | of the floor | XLA us |", "|---|---|---|---|---|"]
    for r in times:
        lines.append(
            f"| {r['kernel']}, batch {r['batch']} | {1e6 * r['median']:.1f} | "
            f"{1e6 * r['floor']:.1f} | {r['floor'] / r['median']:.0%} | {1e6 * r['xla']:.1f} |"
        )
    return "\n".join([*lines, ""])


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
