"""metrics.jsonl has one line per step, also after a kill; the terminal shows every n-th step."""

import json
import sys

import pytest

from jaxs1.config import UserError
from jaxs1.training.config import LogConfig
from jaxs1.training.metrics_logger import MetricsLogger


def log_steps(run, steps, *, first=0, total=9, **config):
    config = LogConfig(**{"tensorboard": False, **config})
    with MetricsLogger(run, config, first=first, total=total, settings={}) as logger:
        for step in steps:
            logger.step(step, {"loss": 1 / step, "tokens_per_s": 12345.6}, compiled=step == 1)


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_one_line_per_step_in_the_file(tmp_path):
    log_steps(tmp_path, [1, 2])
    assert lines(tmp_path) == [
        {"step": 1, "loss": 1.0, "tokens_per_s": 12345.6, "compiled": True},
        {"step": 2, "loss": 0.5, "tokens_per_s": 12345.6, "compiled": False},
    ]


@pytest.mark.parametrize("torn", [0, 1, 25])
def test_resumed_log_equals_an_uninterrupted_one(torn, tmp_path):
    """The run resumes after step 3; a kill tore the last line, `torn` bytes short."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for run in (whole, killed):
        run.mkdir()
    log_steps(whole, range(1, 10))
    log_steps(killed, range(1, 6))
    written = (killed / "metrics.jsonl").read_bytes()
    (killed / "metrics.jsonl").write_bytes(written[: len(written) - torn])
    log_steps(killed, range(4, 10), first=3)
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_terminal_shows_every_nth_step_and_the_last(tmp_path, capsys):
    log_steps(tmp_path, range(1, 10), every=4)
    shown = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in shown] == ["step 4/9", "step 8/9", "step 9/9"]
    assert "loss 0.25  tokens_per_s 12,346  eta 0:" in shown[0]


def test_tensorboard_events_are_written(tmp_path):
    log_steps(tmp_path, [1], tensorboard=True)
    [events] = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes()


def test_damaged_line_is_named(tmp_path):
    log_steps(tmp_path, [1])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("not json\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: is not valid JSON"):
        log_steps(tmp_path, [3], first=2)


def test_missing_wandb_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"log\.wandb=project: needs the package wandb; pip"):
        log_steps(tmp_path, [1], wandb="project")
