"""Adapters: PEFT is the oracle of the forward pass, of training and of the exported folder."""

import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import peft
import pytest
import torch
import transformers
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from convert.adapter import Adapter, MergedWeights, peft_config
from convert.to_hf import to_hf
from convert.weights import load_params, open_weights
from jaxs1.config import UserError, parse
from jaxs1.data.batches import Batches
from jaxs1.data.config import DataConfig
from jaxs1.data.tokenizer import load_tokenizer
from jaxs1.model import transformer
from jaxs1.model.architecture import Architecture
from jaxs1.model.config import ComputeConfig, LoraConfig, MeshConfig
from jaxs1.model.rope import Rope
from jaxs1.model.sharding import make_sharding_rules
from jaxs1.tasks import puzzle_corpus
from jaxs1.train import train as train_command
from jaxs1.training.config import TrainConfig
from jaxs1.training.optimizer import make_optimizer
from jaxs1.training.step import init_state, make_train_step, put_batch, state_shardings
from tests.numerics import assert_close
from tests.tiny_models import FLOAT32, hf_model, one_device
from tests.training.test_sft_parity import OPTIMIZER, make_examples, torch_losses

LORA = LoraConfig(rank=4, alpha=6.0, frozen_dtype="float32")
SOME = LoraConfig(rank=3, alpha=3.0, target_modules=("q_proj", "down_proj"), frozen_dtype="float32")
ATTENTION = LoraConfig(
    rank=4, target_modules=("q_proj", "k_proj", "v_proj", "o_proj"), frozen_dtype="float32"
)
SAME = "LoRA: merged = adapter = PEFT"


def adapted(oracle, folder, lora, *, rules=None, compute=FLOAT32, seed=0):
    """Our model over a transformers model's weights: (abstract, frozen, random A and B)."""
    oracle.save_pretrained(folder)
    weights = open_weights(folder)
    model = transformer.abstract(weights.architecture, compute, rules or one_device(), lora=lora)
    rng = np.random.default_rng(seed)
    layouts = transformer.shardings(model, transformer.Adapter)

    def random(x, layout):
        return jax.device_put(rng.normal(0, 0.2, x.shape).astype(x.dtype), layout)

    adapters = jax.tree.map(random, transformer.parameters(model, transformer.Adapter), layouts)
    return model, load_params(weights, model), adapters


def on_host(adapters, lora, folder):
    arrays = {path: np.asarray(x) for path, x in flatten_dict(adapters, sep=".").items()}
    return Adapter.from_arrays(peft_config(lora, str(folder)), arrays)


def ours(model, *params):
    ids = np.random.default_rng(1).integers(0, 96, (2, 24)).astype(np.int32)
    whole = transformer.with_parameters(model, *params)
    positions = np.broadcast_to(np.arange(24), ids.shape)
    return ids, whole.logits(whole(ids, positions, np.ones_like(ids)))


def theirs(model, ids):
    with torch.no_grad():
        return model(torch.tensor(ids, dtype=torch.long)).logits.numpy()


@pytest.mark.parametrize(
    ("kind", "lora"),
    [
        *itertools.product(["qwen2-tied-14-2", "qwen3-untied-6-3"], [LORA, SOME]),
        ("qwen3_moe-untied-8-2", ATTENTION),
    ],
)
def test_adapter_folder_in_peft_and_merged_weights_in_transformers(kind, lora, tmp_path):
    oracle, base = hf_model(kind), tmp_path / "base"
    model, frozen, adapters = adapted(oracle, base, lora)
    ids, found = ours(model, frozen, adapters)
    plain = theirs(oracle, ids)
    assert np.abs(found - plain).max() > 0.05 * np.abs(plain).max()  # the adapters do something

    adapter = on_host(adapters, lora, base)
    adapter.write(tmp_path / "adapter")
    to_hf(MergedWeights(open_weights(base), adapter), tmp_path / "merged", "float32")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert_close(theirs(merged, ids), found, SAME)

    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")  # finds the base
    assert_close(found, theirs(loaded, ids), SAME)
    lora_tensors = [name for name, _ in loaded.named_parameters() if "lora_" in name]
    assert len(lora_tensors) == 2 * len(lora.target_modules) * model.architecture.num_layers


def test_new_adapter_changes_nothing_and_starts_as_pefts(tmp_path):
    oracle = hf_model("qwen2-tied-14-2")
    model, frozen, _ = adapted(oracle, tmp_path / "base", LORA)
    a = model.architecture
    fresh = transformer.Transformer(a, FLOAT32, one_device(), rngs=nnx.Rngs(0), lora=LORA)
    start = transformer.parameters(fresh, transformer.Adapter)
    ids, found = ours(model, frozen, start)
    assert_close(found, theirs(oracle, ids), "hidden and logits = transformers")
    config = peft.LoraConfig(r=4, target_modules=["gate_proj"], init_lora_weights=True)
    reference = peft.get_peft_model(oracle, config)
    theirs_a = reference.base_model.model.model.layers[0].mlp.gate_proj.lora_A.default.weight
    mine_a = np.asarray(start["layers"]["mlp"]["gate"]["adapter"]["a"])
    bound = a.hidden_size**-0.5
    for sample in (mine_a, theirs_a.detach().numpy()):
        assert 0.9 * bound < np.abs(sample).max() <= bound
        assert sample.std() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert len({layer.tobytes() for layer in mine_a}) == a.num_layers  # each layer its own


def make_batches(rules=None):
    return Batches(
        make_examples(),
        DataConfig(rows=8, row_multiple=128),
        batch_size=8,
        gradient_accumulation_steps=1,
        loss="token",
        seed=0,
        num_row_shards=1 if rules is None else rules.size("rows"),
        attention=0.01,
        padding_id=0,
    )


def train(model, frozen, adapters, steps, batches):
    optimizer = make_optimizer(OPTIMIZER, 20)
    step = make_train_step(model, optimizer, loss_chunk=64)
    state = init_state(model, optimizer, adapters, frozen)
    losses = []
    for number in range(steps):
        state, metrics = step(state, put_batch(batches.batch(number)[0], model.rules))
        losses.append(float(metrics.loss))
    return losses, state


def test_twenty_steps_equal_torch_and_peft_and_change_no_frozen_bit(tmp_path):
    oracle, base = hf_model("qwen2-untied-10-2"), tmp_path / "base"
    model, frozen, adapters = adapted(oracle, base, LORA)
    before = [np.asarray(x).tobytes() for x in jax.tree.leaves(frozen)]
    on_host(adapters, LORA, base).write(tmp_path / "adapter")
    reference = peft.PeftModel.from_pretrained(oracle, tmp_path / "adapter", is_trainable=True)

    batches = make_batches()
    found, state = train(model, frozen, adapters, 20, batches)
    expected = torch_losses(reference, batches.examples, batches, "token")
    assert expected[0] - expected[-1] > 0.2
    for mine, their in zip(found, expected, strict=True):
        assert_close(mine, their, "SFT losses = torch loop, 20 steps")

    assert [np.asarray(x).tobytes() for x in jax.tree.leaves(state.frozen)] == before
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    sizes = sorted(x.size for x in jax.tree.leaves(state.params))
    assert sorted(x.size for x in moments) == sorted(2 * sizes)  # Adam's two, of adapters only


@pytest.mark.parametrize("mesh", [{"fsdp": 2, "context": 2, "tensor": 2}], ids=str)
def test_mesh_gives_the_losses_of_one_device(mesh, tmp_path):
    oracle, rules = hf_model("qwen2-untied-4-4"), make_sharding_rules(MeshConfig(**mesh))
    whole, state = train(*adapted(oracle, tmp_path / "1", LORA), 3, make_batches())
    compute = ComputeConfig(dtype="float32", remat="attention", attention="xla")
    split = adapted(oracle, tmp_path / "8", LORA, rules=rules, compute=compute)
    found, state = train(*split, 3, make_batches(rules))
    assert_close(found, whole, "mesh = one device, losses of 5 steps")
    a = state.params["layers"]["mlp"]["down"]["adapter"]["a"]  # [L, F, rank]
    b = state.params["layers"]["mlp"]["down"]["adapter"]["b"]  # [L, rank, D]
    assert a.addressable_shards[0].data.size * rules.size("mlp") == a.size
    assert b.addressable_shards[0].data.size * rules.size("embed") == b.size
    assert state.opt_state[1][0].mu["layers"]["mlp"]["down"]["adapter"]["b"].sharding == b.sharding


def test_a_step_needs_no_second_copy_of_the_frozen_weights(tmp_path):
    """Neither gradients nor stacked or transposed copies of them: they are what fills the GPU."""
    wide = Architecture(4096, 512, 2048, 4, 8, 4, 64, 512, Rope(1e4), 1e-6, False, True, False)
    compute = ComputeConfig(dtype="float32", remat="full", attention="xla")
    model = transformer.abstract(wide, compute, one_device(), lora=LORA)
    optimizer = make_optimizer(OPTIMIZER, 20)
    layouts = state_shardings(model, optimizer)
    params = transformer.parameters(model, transformer.Adapter)
    shapes = type(layouts)(
        jax.ShapeDtypeStruct((), jnp.int32),
        params,
        jax.eval_shape(optimizer.init, params),
        transformer.parameters(model),
    )
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((1, 1, 128), x.dtype), make_batches().batch(0)[0]
    )
    memory = make_train_step(model, optimizer, loss_chunk=128).lower(shapes, batch).compile()
    memory = memory.memory_analysis()
    frozen = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes.frozen))
    assert memory.argument_size_in_bytes > frozen
    assert memory.temp_size_in_bytes < 0.4 * frozen  # 0.32; the head alone would add 0.1


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Arguments of the command: adapters over a small model, on a mesh of eight devices."""
    folder = tmp_path_factory.mktemp("recipe")
    puzzle_corpus.write_corpus(folder / "data", base_documents=50, sft_examples=40)
    vocab = -(-len(load_tokenizer(str(folder / "data/tokenizer"))) // 64) * 64
    hf_model("qwen2-untied-4-4", vocab=vocab).save_pretrained(folder / "base")
    settings = {
        "model": folder / "base",
        "tokenizer": folder / "data/tokenizer",
        "data.path": folder / "data/sft.jsonl",
        "data.block_size": 256,
        "data.row_multiple": 256,
        "data.rows": 2,
        "batch_size": 4,
        "steps": 4,
        "lora.rank": 4,
        "lora.target_modules": '["q_proj", "o_proj", "up_proj"]',
        "optimizer.learning_rate": 0.01,
        "mesh.fsdp": 2,
        "mesh.context": 2,
        "mesh.tensor": 2,
        "checkpoint.every": 2,
        "export_dtype": "float32",
        "log.tensorboard": "false",
    }
    return [str(x) for name, value in settings.items() for x in (f"--{name}", value)]


def run_command(recipe, run, *more):
    words = [*recipe, "--output", str(run), *more]
    assert train_command(parse(TrainConfig, words, command="test")) == 0


def test_command_keeps_adapters_only_resumes_bitwise_and_exports(recipe, tmp_path, capsys):
    run, again = tmp_path / "run", tmp_path / "again"
    run_command(recipe, run)
    model = peft.AutoPeftModelForCausalLM.from_pretrained(run / "peft")
    ids = np.random.default_rng(1).integers(0, 96, (2, 24))
    merged = transformers.AutoModelForCausalLM.from_pretrained(run / "hf")
    assert_close(theirs(merged, ids), theirs(model, ids), SAME)
    with model.disable_adapter():
        assert np.abs(theirs(merged, ids) - theirs(model, ids)).max() > 0.01

    step = run / "checkpoints" / "4"
    assert {p.name for p in step.iterdir() if p.is_dir()} == {"adapter", "optimizer", "meta"}
    saved = {p.parent.name for p in step.glob("*/*/.zarray")}
    assert saved and all("adapter" in name or "count" in name for name in saved), saved
    to_hf(run, tmp_path / "hf", "float32")  # a run is a model for any command
    name = "hf/model.safetensors"
    assert (tmp_path / name).read_bytes() == (run / name).read_bytes()

    shutil.copytree(run, again)
    for folder in ("checkpoints/4", "hf", "peft"):
        shutil.rmtree(again / folder)
    capsys.readouterr()
    run_command(recipe, again, "--resume", "auto")
    out = capsys.readouterr().out
    assert "resuming  after step 2" in out and "rank 4; the model's are frozen" in out
    for name in ("peft/adapter_model.safetensors", "hf/model.safetensors"):
        assert (again / name).read_bytes() == (run / name).read_bytes()
    with pytest.raises(UserError, match=r"lora\.alpha \(32\.0 then, 8\.0 now\)"):
        run_command(recipe, run, "--resume", "auto", "--lora.alpha", "8")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--lora.rank", "-1"], ["lora.rank=-1", "0 (train all weights) or more"]),
        (["--lora.alpha", "0"], ["lora.alpha=0", "positive"]),
        (["--lora.target_modules", "[]"], ["lora.target_modules=[]", "known: q_proj"]),
        (["--lora.target_modules", '["q_proj", "q_proj"]'], ["lora.target_modules=", "each once"]),
        (["--lora.target_modules", '["lm_head"]'], ["lora.target_modules", "q_proj"]),
        (["--optimizer.name", "muon"], ["optimizer.name=muon", "adamw"]),
        (["--model", "null", "--architecture", "x.json"], ["model=null", "--model DIR"]),
    ],
)
def test_what_cannot_be_adapted_is_one_line(more, words, recipe):
    with pytest.raises(UserError) as error:
        parse(TrainConfig, [*recipe, *more], command="test")
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", None),
        ("r", 0),
        ("r", "4"),
        ("lora_alpha", float("nan")),
        ("lora_alpha", -8),
        ("base_model_name_or_path", None),
    ],
)
def test_a_damaged_adapter_config_is_refused_by_field(field, value, tmp_path):
    _, _, adapters = adapted(hf_model("qwen2-untied-4-4"), tmp_path / "base", LORA)
    step, config = tmp_path / "run/checkpoints/4", tmp_path / "run/model/adapter_config.json"
    arrays = {path: np.asarray(x) for path, x in flatten_dict(adapters, sep=".").items()}
    with ocp.PyTreeCheckpointer(use_ocdbt=False) as checkpointer:
        checkpointer.save(step / "adapter", unflatten_dict(arrays, sep="."))
    config.parent.mkdir()
    shutil.copy(tmp_path / "base/config.json", config.parent)
    good = peft_config(LORA, str(tmp_path / "base"))
    config.write_text(json.dumps(good))
    assert open_weights(tmp_path / "run").architecture.num_heads == 4
    config.write_text(json.dumps(good | {field: value}))
    with pytest.raises(UserError, match=rf"adapter_config\.json: {field}") as error:
        open_weights(tmp_path / "run")
    assert "\n" not in str(error.value)
