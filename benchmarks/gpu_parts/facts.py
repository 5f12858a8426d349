"""Facts are on disk as soon as they are found: a killed run loses none."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu_summary import Figures, read_results, write_results
from jaxs1.storage import JsonlWriter, sync

FILE = "facts.jsonl"


class Facts:
    """Appends JSON lines to `OUTPUT/facts.jsonl` and prints them.

    A line is a header (`"kind": "header"`), the beginning or end of a part (`"begin"`, `"end"`),
    or a fact.

    Args:
        output: folder; an existing file is continued
        header: hardware, software and settings; see `environment.device_header`
        clock: seconds since the run began
    """

    def __init__(self, output: str | Path, header: Figures, clock: Callable[[], float]):
        self.folder, self.clock = Path(output), clock
        self.folder.mkdir(parents=True, exist_ok=True)
        self.part = ""
        self._found: dict[str, Figures] = {}
        self._write(kind="header", **header)

    def begin(self, part: str) -> None:
        """Start a part, which the following facts belong to."""
        self.part = part
        self._write(kind="begin", part=part)

    def add(self, fact: str, **figures: Any) -> None:
        """Record a fact: numbers, texts, and lists of them."""
        self._found[fact] = figures
        self._write(kind="fact", part=self.part, fact=fact, **figures)

    def end(self, part: str, **figures: Any) -> None:
        """Record how a part ended, and rewrite the summary."""
        self._write(kind="end", part=part, **figures)
        self.summarise()

    def found(self, fact: str) -> Figures:
        """A fact of this run; empty if there is none."""
        return self._found.get(fact, {})

    def summarise(self) -> tuple[Path, bool]:
        """Write NAME/DATE.json and .md; the path of the latter, and whether all parts passed."""
        return write_results(self.folder, *read_results([self.folder / FILE]))

    def _write(self, **record: Any) -> None:
        line = json.dumps({**record, "at_s": round(self.clock(), 1)}, default=_plain)
        with JsonlWriter(self.folder / FILE) as file:
            file.write(json.loads(line))
        sync(self.folder / FILE)
        print(line, flush=True)  # after it is on disk: what was seen there is not lost


def process_clock() -> Callable[[], float]:
    """Clock since this process began: importing JAX counts as well."""
    begin = time.perf_counter() - _age()
    return lambda: time.perf_counter() - begin


def _age() -> float:
    """Age of the process [s], from Linux; 0 if unknown or implausible."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
    return age if 0 <= age < 300 else 0.0


def _plain(value: Any) -> Any:
    """NumPy numbers as Python numbers."""
    return value.item() if hasattr(value, "item") else str(value)
