"""Every mesh gives the losses of one device; a mesh that cannot be is refused in one line."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from jaxs1.config import UserError
from jaxs1.data.batches import Batches
from jaxs1.data.chat import Example
from jaxs1.data.config import DataConfig
from jaxs1.model import transformer
from jaxs1.model.architecture import Architecture
from jaxs1.model.config import ComputeConfig, MeshConfig
from jaxs1.model.hf_config import ExpertSpec
from jaxs1.model.rope import Rope
from jaxs1.model.sharding import check_divisible, make_sharding_rules
from jaxs1.model.transformer import Transformer
from jaxs1.training.step import init_state, make_train_step, put_batch
from tests.numerics import assert_close

ARCHITECTURE = Architecture(64, 32, 48, 2, 8, 4, 8, 256, Rope(1e4), 1e-6, False, True, True, 0.2)
EXPERTS = dataclasses.replace(ARCHITECTURE, experts=ExpertSpec(8, 2, 24, True, 0.1))
EXPERT_MESHES = {
    "expert": {"fsdp": 1, "expert": 8},
    "fsdp x expert x tensor": {"fsdp": 2, "expert": 2, "tensor": 2},
    "data x expert x context": {"data": 2, "fsdp": 1, "expert": 2, "context": 2},
}
MESHES = {
    "data": {"data": 8, "fsdp": 1},
    "fsdp": {"fsdp": 8},
    "context": {"fsdp": 1, "context": 8},
    "tensor": {"fsdp": 2, "tensor": 4},
    "fsdp x context": {"fsdp": 2, "context": 4},
    "data x fsdp x tensor": {"data": 2, "fsdp": 2, "tensor": 2},
    "fsdp x context x tensor": {"fsdp": 2, "context": 2, "tensor": 2},
}


def losses(rules, rows, remat, steps=5, gradient_accumulation_steps=1, a=ARCHITECTURE):
    """Losses of some steps of the same batches from the same random weights."""
    compute = ComputeConfig(dtype="float32", remat=remat, attention="xla", loss_chunk=8)
    rng = np.random.default_rng(0)
    examples = [
        Example(rng.integers(0, 64, n).astype(np.int32), np.arange(n) >= n // 3)
        for n in rng.integers(8, 60, 64)
    ]
    batches = Batches(
        examples,
        DataConfig(rows=rows, row_multiple=128),
        batch_size=16,
        gradient_accumulation_steps=gradient_accumulation_steps,
        loss="token",
        seed=0,
        num_row_shards=rules.size("rows"),
        attention=0.01,
        padding_id=0,
    )
    model = transformer.abstract(a, compute, rules)
    # plain SGD: Adam divides by the gradient's size, which would hide a wrong scale
    optimizer = optax.sgd(0.3)
    whole = jax.jit(
        lambda: transformer.parameters(Transformer(a, compute, rules, rngs=nnx.Rngs(0)))
    )()
    params = jax.device_put(whole, transformer.shardings(model))
    state = init_state(model, optimizer, params)
    step = make_train_step(model, optimizer, loss_chunk=8)
    result = []
    for number in range(steps):
        batch, _ = batches.batch(number)
        state, metrics = step(state, put_batch(batch, rules))
        result.append([float(metrics.loss), float(metrics.grad_norm)])
    return np.asarray(result), state


@pytest.fixture(scope="module")
def one_device():
    rules = make_sharding_rules(MeshConfig(fsdp=1), jax.devices()[:1])
    return losses(rules, rows=8, remat="none")[0]


@pytest.mark.parametrize("name", MESHES)
def test_mesh_gives_the_losses_of_one_device(name, one_device):
    rules = make_sharding_rules(MeshConfig(**MESHES[name]))
    found, state = losses(rules, rows=8, remat="attention")
    assert one_device[0, 0] > one_device[-1, 0] > 1  # it learns something
    assert_close(found, one_device, "mesh = one device, losses of 5 steps")
    gate = state.params["layers"]["mlp"]["gate"]["kernel"]
    parts = rules.size("embed") * rules.size("mlp")
    assert gate.addressable_shards[0].data.size * parts == gate.size  # really split


@pytest.fixture(scope="module")
def experts_on_one_device():
    rules = make_sharding_rules(MeshConfig(fsdp=1), jax.devices()[:1])
    return losses(rules, rows=8, remat="none", a=EXPERTS)[0]


@pytest.mark.parametrize("name", EXPERT_MESHES)
def test_mesh_with_experts_gives_the_losses_of_one_device(name, experts_on_one_device):
    rules = make_sharding_rules(MeshConfig(**EXPERT_MESHES[name]))
    found, state = losses(rules, rows=8, remat="attention", a=EXPERTS)
    assert experts_on_one_device[0, 0] > experts_on_one_device[-1, 0] > 1
    assert_close(found, experts_on_one_device, "mesh = one device, losses of 5 steps")
    gate = state.params["layers"]["mlp"]["gate"]
    parts = rules.size("experts") * rules.size("mlp")
    assert gate.addressable_shards[0].data.size * parts == gate.size


def test_accumulation_gives_the_losses_of_one_batch(one_device):
    rules = make_sharding_rules(MeshConfig(fsdp=2, context=2, tensor=2))
    found, _ = losses(rules, rows=2, remat="full", gradient_accumulation_steps=4)
    assert_close(found, one_device, "mesh = one device, losses of 5 steps")


@pytest.mark.parametrize(
    ("mesh", "words"),
    [
        ({"fsdp": 3}, ["mesh=", "fsdp 3", "8 devices", "--mesh.fsdp"]),
        ({"data": 0}, ["mesh.data=0", "at least 1"]),
        ({"data": 3}, ["mesh=", "data 3", "8 devices"]),
    ],
)
def test_mesh_that_does_not_fit_the_devices(mesh, words):
    with pytest.raises(UserError) as error:
        make_sharding_rules(MeshConfig(**mesh))
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_widths_that_the_mesh_does_not_divide():
    rules = make_sharding_rules(MeshConfig(fsdp=1, tensor=8))
    with pytest.raises(UserError, match=r"mesh\.tensor=8.*num_key_value_heads=4"):
        check_divisible(ARCHITECTURE, rules)
    rules = make_sharding_rules(MeshConfig(fsdp=1, expert=8))
    with pytest.raises(UserError, match=r"mesh\.expert=8: .* no experts; use mesh.fsdp"):
        check_divisible(ARCHITECTURE, rules)
    few = dataclasses.replace(ARCHITECTURE, experts=ExpertSpec(12, 2, 24, True, 0.1))
    with pytest.raises(UserError, match=r"mesh\.expert.*=8.*num_experts=12"):
        check_divisible(few, rules)
