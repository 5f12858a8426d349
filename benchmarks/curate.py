"""Time and memory of curation: python -m benchmarks.curate [--rows 59000 200000 1000000]

Each size is a Parquet pool with all features, curated by the command in its own process: all
stages, two benchmark files. A result counts only if 1,000 rows were selected and the planted
duplicates and overlaps were dropped. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from jaxs1.storage import JsonlWriter

ROOT = Path(__file__).parents[1]
BATCH = 50_000
SOURCES = np.array(["qq8933/AIME_1983_2024", "Idavidrein/gpqa", "qfq/openaimath/Algebra", "other"])
LIMITS = {59_000: 20.0, 1_000_000: 300.0}  # rows -> seconds


def main() -> None:
    """Measure every size; exit with 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[59_000, 200_000, 1_000_000])
    parser.add_argument(
        "--words", type=int, default=60, help="number of words of a question (s1K: 58)"
    )
    parser.add_argument("--trace", type=int, default=2_000, help="number of characters of a trace")
    args = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        benchmarks = write_benchmarks(folder)
        for rows in args.rows:
            pool = folder / f"{rows}.parquet"
            write_pool(pool, rows, args.words, args.trace)
            results.append(measure(pool, rows, benchmarks, folder / f"out{rows}"))
            pool.unlink()
    print(json.dumps({"benchmark": "curate", "cores": os.cpu_count(), "results": results}))
    sys.exit(any(r["seconds"] > LIMITS.get(r["rows"], np.inf) for r in results))


def measure(pool: Path, rows: int, benchmarks: str, out: Path) -> dict[str, float]:
    """Run the command on a pool; return seconds, peak memory and rates."""
    arguments = ["--input", pool, "--output", out, "--benchmarks", benchmarks]
    command = [sys.executable, "-m", "jaxs1.curate", "--config", "configs/curate_s1k.yaml"]
    start = time.perf_counter()
    process = subprocess.Popen([*command, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE)
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    assert status == 0, "the command failed"
    funnel = json.loads((out / "funnel.json").read_text())
    dropped = {stage["name"]: stage["dropped"] for stage in funnel["stages"]}
    assert funnel["read"] == rows and funnel["selected"] == 1000
    assert dropped["duplicates"] == dropped["decontamination"] == rows // 1000
    unit = 1024 if sys.platform == "linux" else 1  # of ru_maxrss
    result = {
        "rows": rows,
        "file_mb": pool.stat().st_size / 1e6,
        "seconds": round(seconds, 2),
        "us_per_row": round(seconds / rows * 1e6, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": round(usage.ru_maxrss * unit / 1e6),
    }
    limit = LIMITS.get(rows)
    within = f"limit {limit:.0f} s" if limit else ""
    print(
        f"{rows:>10,} rows  {seconds:7.1f} s  {result['us_per_row']:6.1f} us/row  "
        f"peak {result['peak_mb']:,} MB  {within}",
        flush=True,
    )
    return result


def write_benchmarks(folder: Path) -> str:
    """Write 560 benchmark questions to two files; return the argument of --benchmarks."""
    files = {}
    for name, count in (("first", 500), ("second", 60)):
        path = folder / f"{name}.jsonl"
        with JsonlWriter(path) as writer:
            writer.write(*({"problem": contamination(f"{name}{i}")} for i in range(count)))
        files[str(path)] = "problem"
    return json.dumps(files)


def contamination(name: str) -> str:
    """A benchmark question of 40 words."""
    return " ".join(f"{name}_{i}" for i in range(40))


def write_pool(path: Path, rows: int, words: int, trace: int) -> None:
    """Write rows with all features; 1 in 1,000 repeats a question, 1 in 1,000 a benchmark's."""
    rng = np.random.default_rng(0)
    # share of each source whose rows are seeds: few among the 1,000 selected
    rare = min(4e-4, 400 / rows)
    vocabulary = np.array([f"word{i}" for i in range(20_000)])
    writer = None
    for first in range(0, rows, BATCH):
        n = min(BATCH, rows - first)
        drawn = vocabulary[rng.integers(len(vocabulary), size=(n, words))]
        questions = [f"Q{first + i} " + " ".join(line) for i, line in enumerate(drawn)]
        for i in range(999 - first % 1000, n, 1000):
            questions[i] = questions[i - 1]
            questions[i - 2] += " " + contamination("first7")[:200].upper()
        table = pa.table(
            {
                "question": questions,
                "solution": ["1"] * n,
                "source_type": SOURCES[rng.choice(4, size=n, p=[rare, rare, rare, 1 - 3 * rare])],
                "thinking_trajectories": [["x" * trace]] * n,
                "attempt": ["an attempt"] * n,
                "length": rng.integers(100, 30_000, size=n),
                "correct": rng.random(n) < 0.6,
                "solved_small": rng.random(n) < 0.3,
                "solved_large": rng.random(n) < 0.4,
                "subject": np.array([f"{i:02d}" for i in range(61)])[rng.integers(61, size=n)],
            }
        )
        writer = writer or parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


if __name__ == "__main__":
    main()
