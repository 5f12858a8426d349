"""Saved state equals the state bit by bit; only harmless settings may change when a run resumes."""

import dataclasses
import json
import subprocess
import sys
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxs1.config import UserError
from jaxs1.data.config import DataConfig
from jaxs1.training.checkpoint import Checkpoints, latest_step
from jaxs1.training.config import CheckpointConfig, OptimizerConfig, TrainConfig
from jaxs1.training.step import TrainState
from tests.conftest import ROOT

CONFIG = TrainConfig(
    model="m",
    data=DataConfig(path="a.jsonl", fields={"question": "prompt"}),
    optimizer=OptimizerConfig(max_grad_norm=0.5),
    gradient_accumulation_steps=2,
)


def make_state(step, seed=0, frozen=None):
    rng = np.random.default_rng(seed)
    params = {"layers": {"q": {"kernel": jnp.asarray(rng.normal(size=(2, 8, 4)), jnp.float32)}}}
    optimizer = optax.adamw(0.1)
    opt_state = optimizer.init(params)
    grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
    _, opt_state = optimizer.update(grads, opt_state, params)
    return jax.device_put(
        TrainState(jnp.asarray(step, jnp.int32), params, opt_state, frozen), jax.devices()[0]
    )


def files(array):
    """Files of a stored array, without its metadata."""
    return [path.name for path in array.iterdir() if not path.name.startswith(".")]


def save(run, *states, config=CONFIG):
    with closing(Checkpoints(run, config.checkpoint)) as checkpoints:
        for state in states:
            checkpoints.save(state, config)


def restore(run, step, like, config=CONFIG):
    with closing(Checkpoints(run, config.checkpoint)) as checkpoints:
        return checkpoints.restore(step, like, config)


def assert_equal_bits(found, expected):
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_one_file_for_each_layer_and_few_for_the_vocabulary(tmp_path):
    params = {"embedding": jnp.ones((3000, 8)), "layers": {"q": {"kernel": jnp.ones((3, 8, 4))}}}
    opt_state = optax.adamw(0.1).init(params)
    save(tmp_path, TrainState(jnp.int32(1), params, opt_state, None))
    step = tmp_path / "checkpoints/1"
    arrays = [*step.glob("*/*layers.q.kernel"), *step.glob("*/*embedding")]
    assert len(arrays) == 6  # with both moments
    assert {a.name.split(".")[-1]: len(files(a)) for a in arrays} == {"kernel": 3, "embedding": 1}


def test_restored_state_equals_the_saved_one_bit_by_bit(tmp_path):
    state = make_state(7)
    save(tmp_path, state)
    assert_equal_bits(restore(tmp_path, 7, make_state(0, seed=1)), state)


def test_adapters_are_saved_without_the_weights_under_them(tmp_path):
    frozen = {"kernel": jnp.ones(3)}
    state = make_state(7, frozen=frozen)
    save(tmp_path, state)
    saved = {p.name for p in (tmp_path / "checkpoints" / "7").iterdir() if p.is_dir()}
    assert saved == {"adapter", "optimizer", "meta"}
    other = make_state(0, seed=1, frozen={"kernel": jnp.zeros(3)})
    found = restore(tmp_path, 7, other)
    assert_equal_bits(found.params, state.params)
    assert_equal_bits(found.frozen, other.frozen)


def test_newest_checkpoints_are_kept(tmp_path):
    assert latest_step(tmp_path) == 0
    config = dataclasses.replace(CONFIG, checkpoint=CheckpointConfig(max_to_keep=2))
    save(tmp_path, *(make_state(step) for step in (5, 10, 15)), config=config)
    (tmp_path / "checkpoints" / "20.orbax-checkpoint-tmp").mkdir()  # what a killed save leaves
    assert latest_step(tmp_path) == 15
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("*") if p.name.isdigit()) == [
        "10",
        "15",
    ]


def test_run_saved_by_version_0_1_resumes(tmp_path):
    """Its settings have their old names: those that RENAMED replaces."""
    state = make_state(7)
    save(tmp_path, state)
    file = tmp_path / "checkpoints" / "7" / "meta" / "metadata"
    meta = json.loads(file.read_text())
    old = meta["config"]
    old["accumulate"] = old.pop("gradient_accumulation_steps")
    for group, name, before in (
        ("optimizer", "min_lr_ratio", "final_ratio"),
        ("optimizer", "max_grad_norm", "clip_norm"),
        ("lora", "target_modules", "targets"),
        ("checkpoint", "max_to_keep", "keep"),
        ("data", "overlong", "on_too_long"),
        ("distributed", "heartbeat_timeout", "lost_after"),
    ):
        old[group][before] = old[group].pop(name)
    file.write_text(json.dumps(meta))
    assert_equal_bits(restore(tmp_path, 7, make_state(0, seed=1)), state)
    other = dataclasses.replace(CONFIG, gradient_accumulation_steps=4)
    with pytest.raises(UserError, match=r"gradient_accumulation_steps \(2 then, 4 now\)"):
        restore(tmp_path, 7, state, other)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 8}, r"batch_size \(16 then, 8 now\)"),
        ({"optimizer": OptimizerConfig()}, r"optimizer\.max_grad_norm \(0\.5 then, 1\.0 now\)"),
        ({"data": DataConfig(path="a.jsonl")}, r"data\.fields.* then"),
        ({"seed": 1, "epochs": 3}, r"epochs \(5 then, 3 now\); seed \(0 then, 1 now\)"),
    ],
)
def test_changed_result_is_refused_and_named(change, words, tmp_path):
    state = make_state(7)
    save(tmp_path, state)
    with pytest.raises(UserError, match=words) as error:
        restore(tmp_path, 7, state, dataclasses.replace(CONFIG, **change))
    assert "\n" not in str(error.value)


def test_harmless_settings_may_change(tmp_path):
    state = make_state(7)
    save(tmp_path, state)
    other = dataclasses.replace(
        CONFIG, output="moved", resume="auto", checkpoint=CheckpointConfig(every=1)
    )
    assert_equal_bits(restore(tmp_path, 7, make_state(0, seed=1), other), state)


PRINTED = """
import asyncio, sys, threading
from jaxs1.training.checkpoint import quiet_orbax

async def fail(text):
    raise ValueError(text)

async def main(text):
    asyncio.create_task(fail(text))  # fails, and nobody asks
    await asyncio.sleep(0.01)

def in_a_thread(text):
    raise ValueError(text)

quiet_orbax()
asyncio.run(main(sys.argv[1]))
thread = threading.Thread(target=in_a_thread, args=sys.argv[1:])
thread.start()
thread.join()
"""


@pytest.mark.parametrize(
    ("text", "lines"), [("Failed to write [os_error_code='27']", 0), ("another", 2)]
)
def test_only_failed_writes_of_other_threads_are_silent(text, lines):
    """Orbax raises one of them; of tasks and threads the rest would be printed as well."""
    done = subprocess.run(
        [sys.executable, "-c", PRINTED, text], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr.count(f"ValueError: {text}") == lines
    assert bool(done.stderr) == bool(lines)
