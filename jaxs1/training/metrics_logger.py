"""Logs a run's metrics to metrics.jsonl, TensorBoard, Weights & Biases and the terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxs1.config import UserError
from jaxs1.storage import JsonlWriter, complete_lines, parse_row
from jaxs1.training.config import LogConfig


class MetricsLogger:
    """Logs the metrics of every step; use as a context manager.

    Args:
        run: run directory
        config: log settings
        first: step after which the run starts; later lines of an earlier attempt are removed
        total: number of steps of the run
        settings: settings of the run, for Weights & Biases
    """

    def __init__(
        self, run: Path, config: LogConfig, *, first: int, total: int, settings: dict[str, Any]
    ):
        self.config, self.total = config, total
        self.file = open_log(run / "metrics.jsonl", first)
        self.tensorboard = self.wandb = None
        if config.tensorboard:
            from tensorboardX import SummaryWriter

            self.tensorboard = SummaryWriter(str(run / "tensorboard"), purge_step=first + 1)
        if config.wandb:
            try:
                import wandb
            except ImportError:
                raise UserError(
                    f"log.wandb={config.wandb}: needs the package wandb; pip install wandb"
                ) from None
            self.wandb = wandb.init(project=config.wandb, config=settings, dir=str(run))
        self.console = Console()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("compiling", total=total, completed=first)
        self.started = self.last = time.monotonic()
        self.first = first

    def step(
        self,
        step: int,
        values: dict[str, float],
        *,
        compiled: bool,
        shown: Sequence[str] | None = None,
    ) -> None:
        """Log a finished step.

        Args:
            step: number of the step, from 1
            values: metrics, in the order in which they are printed
            compiled: whether the step compiled a new shape, so its time is not representative
            shown: names of the metrics to print; None prints all
        """
        self.file.write({"step": step, **values, "compiled": compiled})
        for name, value in values.items():
            if self.tensorboard is not None:
                self.tensorboard.add_scalar(name, value, step)
        if self.wandb is not None:
            self.wandb.log(values, step=step)
        printed = values if shown is None else {n: values[n] for n in shown if n in values}
        text = "  ".join(f"{name} {_short(value)}" for name, value in printed.items())
        self.bar.update(self.task, completed=step, description=text)
        is_last = step == self.total
        if not self.console.is_terminal and (step % self.config.every == 0 or is_last):
            elapsed = time.monotonic() - self.started
            remaining = elapsed / max(1, step - self.first) * (self.total - step)
            print(f"step {step}/{self.total}  {text}  eta {_clock(remaining)}", flush=True)

    def lap(self) -> float:
        """Seconds since the last call."""
        now = time.monotonic()
        seconds, self.last = now - self.last, now
        return seconds

    def __enter__(self) -> MetricsLogger:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()
        self.file.close()
        if self.tensorboard is not None:
            self.tensorboard.close()
        if self.wandb is not None:
            self.wandb.finish(exit_code=1 if error else 0)


def open_log(path: Path, first: int) -> JsonlWriter:
    """Open a log without the lines that an interrupted attempt wrote after step `first`."""
    log, end = JsonlWriter(path), 0
    for line in complete_lines(path):
        if parse_row(line.content, line.where).get("step", 0) > first:
            break
        end = line.end
    log.truncate(end)
    return log


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
