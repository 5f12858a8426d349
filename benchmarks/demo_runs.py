"""Run the demo with several seeds on several kinds of CPU: python -m benchmarks.demo_runs

Every run is the whole of `python -m jaxs1.demo`, in a folder below --work, and becomes one file in
benchmarks/demo/runs. A run that is recorded with today's recipe is skipped, one that was
interrupted is resumed. Then it draws runs.png, writes runs.md, and checks every run: with `WAITS`
Waits, a number chosen on development questions, at least `POINTS` points more test questions are
right than with natural stopping, and the paired p-value is below `P_VALUE`. Exit status 1 if not.

Another kind of CPU is emulated by limiting the instructions that XLA may generate. `--limit 0` runs
nothing: it draws and checks what is recorded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from jaxs1.config import UserError, parse, run_command
from jaxs1.demo import WAITS
from jaxs1.evaluation.methods import METHODS
from jaxs1.evaluation.plots import STYLES
from jaxs1.evaluation.results import PointResult, Results, read_results
from jaxs1.tasks import puzzle_corpus

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "benchmarks" / "demo"
RECIPES = ("demo_base", "demo_sft", "demo_evaluate")
POINTS, P_VALUE = 0.05, 0.01
#: Instruction sets, the largest first: the flag in /proc/cpuinfo and XLA's name.
ISAS = {"amx": ("amx_tile", "AMX"), "avx512": ("avx512f", "AVX512"), "avx2": ("avx2", "AVX2")}

PAGE = """# The demo with several seeds on several kinds of CPU

Made by `python -m benchmarks.demo_runs`. Each run is the whole of `make demo`, with its own corpus,
random weights and order of the data. CPU is the largest instruction set that XLA could use; on a
CPU with more it was told to generate no later instructions. The columns 0 to {most} are the
accuracy in % with that many Waits, on the same {questions} test questions. The difference is that
of {waits} Waits from natural stopping (0), in percentage points, with Newcombe's paired 95 %
interval and McNemar's exact p-value. The number of Waits was chosen on development questions, so p
needs no correction. The CPU was shared with other work, which makes both times longer.

{table}

![runs](runs.png)
"""


@dataclass(frozen=True)
class Options:
    """Run the demo with several seeds on several kinds of CPU.

    Args:
        seeds: Seeds to run
        isas: Instruction sets to run: amx, avx512, avx2; the CPU must have them
        limit: Number of runs to do at most; null does all that are missing
        work: Folder of the runs that are not recorded yet
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    isas: tuple[str, ...] = ("avx512", "avx2")
    limit: int | None = None
    work: str = "runs/demo"


@dataclass(frozen=True)
class DemoRun:
    """A recorded run.

    Args:
        seed: Random seed
        isa: Largest instruction set that XLA could use
        cpu: Model of the CPU
        recipe: Digest of the recipe
        seconds: Time from start to end [s]; None if the run was interrupted
        cpu_seconds: CPU time of all processes [s]; None if the run was interrupted
        results: Results on the test questions
    """

    seed: int
    isa: str
    cpu: str
    recipe: str
    seconds: float | None
    cpu_seconds: float | None
    results: Results

    @property
    def point(self) -> PointResult:
        """The results with `WAITS` Waits."""
        return next(p for p in self.results.of("num_waits") if p.value == WAITS)

    @property
    def succeeded(self) -> bool:
        """Whether Waits gained enough, beyond chance."""
        found = self.point.versus_natural
        return found is not None and found.difference >= POINTS and found.p_value < P_VALUE


def main(argv: Sequence[str]) -> int:
    """The command; returns 1 if a run fell short."""
    options = parse(Options, argv, command="python -m benchmarks.demo_runs")
    for name in set(options.isas) - set(ISAS):
        raise UserError(f"isas={name}: must be one of {', '.join(ISAS)}")
    wanted = [(seed, isa) for seed in options.seeds for isa in options.isas]
    missing = [run for run in wanted if not _is_recorded(*run)]
    for seed, isa in missing[: options.limit]:
        _record(seed, isa, Path(options.work))
    runs = read_runs()
    if not runs:
        raise UserError(f"{RECORDED / 'runs'}: has no run yet; give --limit 1 or more")
    draw(runs, RECORDED / "runs.png")
    (RECORDED / "runs.md").write_text(page(runs))
    short = [f"seed {run.seed}, {run.isa}" for run in runs if not run.succeeded]
    print(f"{table(runs)}\n{len(runs)} runs, {len(short)} fell short{': ' * bool(short)}", end="")
    print(", ".join(short))
    return 1 if short else 0


def recipe_digest() -> str:
    """Digest of all that makes the demo's model and its results, but the seed."""
    files = [ROOT / "configs" / f"{name}.yaml" for name in RECIPES]
    files.append(ROOT / "configs" / "models" / "tiny.json")
    recipe: list[Any] = [yaml.safe_load(file.read_text()) for file in files]
    recipe.append(dataclasses.asdict(puzzle_corpus.Teacher()))
    recipe += [puzzle_corpus.BASE_MIXTURE, puzzle_corpus.DRAWN_WORKSHEETS, puzzle_corpus.PAGE]
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def read_runs() -> list[DemoRun]:
    """All recorded runs, by instruction set and seed."""
    runs = [_read(file) for file in (RECORDED / "runs").glob("*.json")]
    return sorted(runs, key=lambda run: (list(ISAS).index(run.isa), run.seed))


def _file(seed: int, isa: str) -> Path:
    return RECORDED / "runs" / f"{isa}_seed{seed}.json"


def _read(file: Path) -> DemoRun:
    tree = json.loads(file.read_text())
    return DemoRun(**tree | {"results": Results.from_json(tree["results"])})


def _is_recorded(seed: int, isa: str) -> bool:
    file = _file(seed, isa)
    return file.exists() and _read(file).recipe == recipe_digest()


def _record(seed: int, isa: str, work: Path) -> None:
    """Run the demo and write its file; the run's folder is removed when it is recorded."""
    flags, cpu = _cpu()
    available = [name for name, (feature, _) in ISAS.items() if feature in flags]
    if isa not in available:
        raise UserError(f"isas={isa}: {cpu} has {', '.join(available)}; leave {isa} out")
    environment = dict(os.environ)
    if isa != available[0]:
        limit = f"--xla_cpu_max_isa={ISAS[isa][1]}"
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {limit}".strip()
    folder = work / recipe_digest() / _file(seed, isa).stem
    resumed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    command = ["-m", "jaxs1.demo", "--output", str(folder), "--seed", str(seed)]
    print(f"seed {seed}, {isa}: log in {folder}/log", flush=True)
    start, before = time.monotonic(), children_seconds()
    with open(folder / "log", "a") as log:
        done = subprocess.run(
            [sys.executable, *command],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        raise UserError(f"{folder}/log: the demo failed with status {done.returncode}")
    seconds, cpu_seconds = time.monotonic() - start, children_seconds() - before
    run = DemoRun(
        seed=seed,
        isa=isa,
        cpu=cpu,
        recipe=recipe_digest(),
        seconds=None if resumed else round(seconds),
        cpu_seconds=None if resumed else round(cpu_seconds),
        results=read_results(str(folder / "evaluation")),
    )
    tree = vars(run) | {"results": run.results.as_json()}
    _file(seed, isa).parent.mkdir(parents=True, exist_ok=True)
    _file(seed, isa).write_text(json.dumps(tree, indent=1) + "\n")
    shutil.rmtree(folder)


def children_seconds() -> float:
    """CPU time of all child processes that have ended [s]."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _cpu() -> tuple[set[str], str]:
    """Flags and model of this machine's CPU."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    found = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    return set(found.get("flags", "").split()), found.get("model name", "unknown")


def page(runs: Sequence[DemoRun]) -> str:
    """The content of runs.md."""
    return PAGE.format(
        most=max(int(point.value or 0) for point in runs[0].results.of("num_waits")),
        questions=runs[0].results.questions,
        waits=WAITS,
        table=table(runs),
    )


def table(runs: Sequence[DemoRun]) -> str:
    """One row per run."""
    waits = [point.value for point in runs[0].results.of("num_waits")]
    header = ["seed", "CPU", *map(str, waits), "difference", "95 %", "p", "s", "CPU s"]
    rows = [header, ["---:"] * len(header)]
    for run in runs:
        cells = [f"{100 * point.accuracy:.1f}" for point in run.results.of("num_waits")]
        found = run.point.versus_natural
        if found is None:
            compared = ["-"] * 3
        else:
            p_value = f"{found.p_value:.0e}" if found.p_value < 0.001 else f"{found.p_value:.3f}"
            interval = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
            compared = [f"{100 * found.difference:+.1f}", interval, p_value]
        times = ["-" if x is None else f"{x:.0f}" for x in (run.seconds, run.cpu_seconds)]
        rows.append([str(run.seed), run.isa, *cells, *compared, *times])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def draw(runs: Sequence[DemoRun], path: Path) -> None:
    """Accuracy against mean thinking tokens: every run thin, their mean bold."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    for method in ("budget", "num_waits"):
        color, marker = STYLES[method]
        lines = []
        for run in runs:
            points = run.results.of(method)
            lines.append([(p.thinking_tokens or 0.0, 100 * p.accuracy, p.value) for p in points])
            tokens, accuracy, _ = zip(*lines[-1], strict=True)
            axes.plot(tokens, accuracy, color=color, linewidth=0.9, alpha=0.35)
        columns = list(zip(*lines, strict=True))
        tokens_P = [fmean(tokens for tokens, _, _ in column) for column in columns]
        accuracy_P = [fmean(accuracy for _, accuracy, _ in column) for column in columns]
        axes.plot(tokens_P, accuracy_P, color, marker=marker, linewidth=2, label=METHODS[method])
        for x, y, column in zip(tokens_P, accuracy_P, columns, strict=True):
            if method == "num_waits":
                axes.annotate(
                    f"{column[0][2]}", (x, y), (0, 9), textcoords="offset points", ha="center",
                    color=color, fontsize=11,
                )  # fmt: skip
    axes.set_xlabel("mean thinking [tokens]", fontsize=13)
    axes.set_ylabel("accuracy [%]", fontsize=13)
    axes.legend(frameon=False, fontsize=11, loc="upper left")
    axes.set_title(f"{len(runs)} runs (thin), mean (bold)", fontsize=11, loc="right")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    run_command(main)
