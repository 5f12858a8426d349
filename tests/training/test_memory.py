"""A run that cannot fit is rejected before it starts, with the figures and the remedies."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxs1.config import UserError
from jaxs1.data.batches import Batches
from jaxs1.data.chat import Example
from jaxs1.data.config import DataConfig
from jaxs1.model import transformer
from jaxs1.model.architecture import Architecture, read_config
from jaxs1.model.config import MeshConfig
from jaxs1.model.sharding import local_bytes, make_sharding_rules
from jaxs1.training.config import TrainConfig
from jaxs1.training.memory import Memory, check_fits, estimate_memory, refuse_if_too_large
from jaxs1.training.optimizer import make_optimizer
from jaxs1.training.step import abstract_state, init_state
from tests.conftest import ROOT
from tests.tiny_models import FLOAT32, one_device

TINY = str(ROOT / "configs" / "models" / "tiny.json")
CONFIG = TrainConfig(
    architecture=TINY,
    tokenizer="t",
    data=DataConfig(path="a.jsonl", rows=2, row_multiple=128),
    compute=FLOAT32,
)


def tiny_model(rules=None):
    architecture = Architecture.from_hf(read_config(TINY) | {"vocab_size": 256}, TINY)
    return transformer.abstract(architecture, FLOAT32, rules or one_device(), max_segments=16)


def test_a_run_that_cannot_fit_is_refused_with_the_numbers():
    memory = Memory(10e9, 20e9, 10e9, 60e9, 5e9)
    refuse_if_too_large(memory, 100e9, "GPU")
    with pytest.raises(UserError) as error:
        refuse_if_too_large(memory, 80e9, "GPU")
    message = str(error.value)
    assert "\n" not in message
    for words in ("memory=105.0 GB", "activations 60.0", "GPU has 80.0", "--compute.remat full"):
        assert words in message


def test_training_is_refused_by_what_its_device_says():
    examples = [Example(np.zeros(n, np.int32), np.ones(n, bool)) for n in [100] * 31 + [2000]]
    batches = Batches(
        examples, CONFIG.data, batch_size=16, gradient_accumulation_steps=1, loss="token", seed=0,
        num_row_shards=2, attention=0.01, padding_id=0,
    )  # fmt: skip
    model = tiny_model()
    state = abstract_state(model, make_optimizer(CONFIG.optimizer, 4))
    needed = estimate_memory(
        model, state, gradient_accumulation_steps=1, rows=2, length=2048,
        loss_chunk=CONFIG.compute.loss_chunk,
    ).total  # fmt: skip

    def device(limit):
        stats = {} if limit is None else {"bytes_limit": limit}
        return SimpleNamespace(memory_stats=lambda: stats, device_kind="GPU")

    for enough in (None, needed):
        check_fits(model, CONFIG, batches, 4, device(enough))
    with pytest.raises(UserError, match=rf"GPU has {needed / 1.2e9:.1f}; use more devices"):
        check_fits(model, CONFIG, batches, 4, device(needed / 1.2))


@pytest.mark.parametrize("fsdp", [1, 4])
def test_size_of_the_state_is_that_of_its_arrays_on_a_device(fsdp):
    rules = make_sharding_rules(MeshConfig(fsdp=fsdp), jax.devices()[:fsdp])
    model = tiny_model(rules)
    optimizer = make_optimizer(CONFIG.optimizer, 4)
    shardings = transformer.shardings(model)
    zeros = jax.tree.map(
        lambda x, s: jax.device_put(np.zeros(x.shape, x.dtype), s),
        transformer.parameters(model),
        shardings,
    )
    state = init_state(model, optimizer, zeros)
    abstract = abstract_state(model, optimizer)
    for found, expected in zip(*map(jax.tree.leaves, (abstract, state)), strict=True):
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        assert found.sharding.is_equivalent_to(expected.sharding, found.ndim)
    shards = [x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state)]
    assert local_bytes(abstract) == local_bytes(state) == sum(shards)
