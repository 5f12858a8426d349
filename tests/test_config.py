"""Recipes, overrides, and the one line that every wrong setting gets."""

import dataclasses
import json

import pytest
import yaml

from jaxs1.config import (
    UserError,
    configs_folder,
    current_names,
    find_recipe,
    override,
    parse,
    to_yaml,
)
from jaxs1.generate import GenerateConfig
from jaxs1.model.architecture import Architecture, read_config
from jaxs1.rl.config import GrpoConfig
from jaxs1.training.config import TrainConfig
from tests.conftest import ROOT

NEEDED = ["--data.path", "a.jsonl", "--model", "m"]
CONFIGS = ROOT / "configs"


def train_config(*argv):
    return parse(TrainConfig, argv, command="python -m jaxs1.train")


def test_command_line_overrides_the_recipe():
    recipe = ["--config", str(CONFIGS / "s1_32b.yaml")]
    plain = train_config(*recipe)
    assert plain.optimizer.learning_rate == 1e-5
    changed = train_config(*recipe, "--optimizer.learning_rate", "2e-5", "--steps", "7")
    optimizer = dataclasses.replace(plain.optimizer, learning_rate=2e-5)
    assert changed == dataclasses.replace(plain, optimizer=optimizer, steps=7)
    fields = train_config(*recipe, "--data.fields", '{"question": "prompt"}').data.fields
    assert fields == {"question": "prompt"}


TRAINING = [p for p in sorted(CONFIGS.glob("*.yaml")) if "jaxs1.train " in p.read_text()]


@pytest.mark.parametrize("recipe", TRAINING, ids=lambda p: p.name)
def test_recipe_is_valid_and_reads_back(recipe, tmp_path):
    assert len(TRAINING) >= 6
    needed = [*NEEDED, "--tokenizer", "t"] if recipe.name == "tiny.yaml" else []
    config = train_config("--config", str(recipe), *needed)
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(config))
    assert train_config("--config", str(again)) == config
    assert f"#   python -m jaxs1.train --config configs/{recipe.name}" in recipe.read_text()


@pytest.mark.parametrize("name", ["demo_grpo", "grpo_7b", "grpo_32b"])
def test_recipe_of_grpo_is_valid_and_reads_back(name, tmp_path):
    needed = ["--task", "questions.jsonl"]
    config = parse(GrpoConfig, ["--config", name, *needed], command="python -m jaxs1.grpo")
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(config))
    assert parse(GrpoConfig, ["--config", str(again)], command="python -m jaxs1.grpo") == config
    assert f"--config configs/{name}.yaml" in find_recipe(name).read_text()


def test_recipe_and_shapes_are_found_by_name(tmp_path, monkeypatch):
    assert configs_folder() == CONFIGS
    for folder in (ROOT, tmp_path):  # from any working directory
        monkeypatch.chdir(folder)
        assert train_config("--config", "s1_7b") == train_config("--config=configs/s1_7b.yaml")
        assert find_recipe("s1_7b").samefile(CONFIGS / "s1_7b.yaml")
        shapes = [
            find_recipe(name, setting="architecture")
            for name in ("qwen2.5-7b", "configs/models/qwen2.5-7b.json")
        ]
        assert all(path.samefile(CONFIGS / "models" / "qwen2.5-7b.json") for path in shapes)


def test_file_of_the_user_precedes_a_recipe_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s1_7b").write_text("steps: 3")
    assert train_config(*NEEDED, "--config", "s1_7b").steps == 3


@pytest.mark.parametrize(
    ("setting", "known"),
    [("config", "s1_32b, s1_32b_lora"), ("architecture", "qwen3-8b, r1-distill-llama-70b")],
)
def test_unknown_name_lists_the_known_ones(setting, known):
    with pytest.raises(UserError) as error:
        find_recipe("s1_33b", setting=setting)
    message = str(error.value)
    assert message.startswith(f"{setting}=s1_33b: does not exist; give a file, or one of ")
    assert known in message
    assert "\n" not in message


OLD = """
accumulate: 4
optimizer: {clip_norm: 0.5, final_ratio: 0.1}
lora: {targets: [q_proj]}
checkpoint: {keep: 7}
data: {on_too_long: error}
distributed: {lost_after: 60}
"""


def test_names_of_version_0_1_are_read_and_named(tmp_path, capsys):
    (tmp_path / "old.yaml").write_text(OLD)
    config = train_config(*NEEDED, "--config", str(tmp_path / "old.yaml"))
    assert config.gradient_accumulation_steps == 4
    assert (config.optimizer.max_grad_norm, config.optimizer.min_lr_ratio) == (0.5, 0.1)
    assert config.lora.target_modules == ("q_proj",)
    assert config.checkpoint.max_to_keep == 7
    assert config.data.overlong == "error"
    assert config.distributed.heartbeat_timeout == 60
    notes = capsys.readouterr().err.splitlines()
    assert "note: accumulate is now called gradient_accumulation_steps" in notes
    assert len(notes) == 7
    assert train_config(*NEEDED, "--accumulate=4").gradient_accumulation_steps == 4
    assert train_config(*NEEDED, "--checkpoint.keep", "7").checkpoint.max_to_keep == 7


def test_values_of_version_0_1_are_read_and_named(capsys):
    for words in (["--impl=narrow"], ["--impl", "narrow"]):
        config = parse(GenerateConfig, ["--model", "m", "--prompt", "hi", *words], command="test")
        assert config.impl == "bf16x3"
        assert capsys.readouterr().err == "note: impl=narrow is now impl=bf16x3\n"
    assert current_names({"against": "ours", "seed": "ours"}, notify=False) == {
        "against": "jaxs1",
        "seed": "ours",
    }


def test_current_names_leave_values_and_other_names_alone(capsys):
    settings = {"data": {"fields": {"accumulate": "keep"}}, "checkpoint.keep": 3}
    expected = {"data": {"fields": {"accumulate": "keep"}}, "checkpoint.max_to_keep": 3}
    assert current_names(settings, notify=False) == expected
    assert capsys.readouterr().err == ""


def test_override_replaces_nested_and_old_named_fields():
    config = train_config(*NEEDED)
    changes = {"seed": 3, "optimizer": {"clip_norm": None, "b1": 0.8}, "accumulate": 2}
    found = override(config, changes, command="test")
    optimizer = dataclasses.replace(config.optimizer, max_grad_norm=None, b1=0.8)
    assert found == dataclasses.replace(
        config, seed=3, gradient_accumulation_steps=2, optimizer=optimizer
    )
    assert override(config, {}, command="test") == config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": {"learning_rat": 1}}, ["did you mean optimizer.learning_rate"]),
        ({"optimizer": {"name": "sgd"}}, ["optimizer.name=sgd", "adamw", "muon"]),
        ({"steps": 1.5}, ["steps=1.5", "int or null"]),
        ({"seed": None}, ["seed=null"]),
        ({"optimizer": 3}, ["optimizer", "object of fields"]),
        ({"batch_size": 0}, ["batch_size=0: must be positive"]),
    ],
)
def test_wrong_override_is_one_line(changes, words):
    with pytest.raises(UserError) as error:
        override(train_config(*NEEDED), changes, command="test")
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_s1_hyper_parameters():
    """Section 4 and appendix of arXiv 2501.19393, and s1's train/sft.sh."""
    c = train_config("--config", str(CONFIGS / "s1_32b.yaml"))
    assert (c.batch_size, c.epochs, c.data.block_size) == (16, 5, 32768)
    o = c.optimizer
    assert (o.name, o.learning_rate, o.b1, o.b2, o.weight_decay) == ("adamw", 1e-5, 0.9, 0.95, 1e-4)
    assert (o.warmup_ratio, o.min_lr_ratio, o.max_grad_norm) == (0.05, 0.0, 1.0)
    assert (c.compute.dtype, c.compute.param_dtype) == ("bfloat16", "float32")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--optimizer.learning_rat", "1"], ["optimizer.learning_rat", "optimizer.learning_rate"]),
        (["--batch", "1"], ["batch", "did you mean batch_size"]),
        (["--optimizer.learning_rate", "fast"], ["optimizer.learning_rate=fast", "float"]),
        (["--optimizer.name", "sgd"], ["optimizer.name=sgd", "adamw", "muon"]),
        (["--steps", "1.5"], ["steps=1.5", "int"]),
        (["--steps", "0"], ["steps=0", "positive"]),
        (["--batch_size", "-1"], ["batch_size=-1", "positive"]),
        (["--optimizer.warmup_ratio", "2"], ["optimizer.warmup_ratio=2", "0 to 1"]),
        (["--checkpoint.every", "-1"], ["checkpoint.every=-1"]),
        (["--data.path", ""], ["data.path=''", "--data.path"]),
        (["--model", "null"], ["model=null", "--architecture"]),
        (["--model", "null", "--architecture", "a.json"], ["tokenizer=null", "--tokenizer"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "does not exist"]),
        (["stray"], ["stray"]),
    ],
)
def test_wrong_setting_is_one_line(argv, words):
    with pytest.raises(UserError) as error:
        train_config(*NEEDED, *argv)
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optimizer: {lr: 1}", ["optimizer.lr: no such field"]),
        ("optimiser: {learning_rate: 1}", ["optimiser", "did you mean optimizer"]),
        ("batch_size: many", ["batch_size=many", "int"]),
        ("a: [1\nb: }", ["pars"]),
        ("- 1", []),
    ],
)
def test_wrong_recipe_is_one_line(text, words, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(UserError) as error:
        train_config(*NEEDED, "--config", str(recipe))
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_command_ends_with_one_line_and_status_2(run_module):
    done = run_module("jaxs1.train", "--config", "configs/tiny.yaml", "--optimiser.name", "x")
    assert done.returncode == 2
    assert done.stderr.startswith("error: optimiser.name: no such field; did you mean optimizer")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_help_explains_every_field_and_print_config_reads_back(run_module, tmp_path):
    lines = run_module("jaxs1.train", "--help").stdout.splitlines()
    shown = " ".join(" ".join(lines).split())
    assert lines[0] == "usage: python -m jaxs1.train [--config RECIPE] [--FIELD VALUE ...]"
    titles = ["Training data:", "Optimizer:", "Device mesh:", "Checkpoints:", "Logging:"]
    assert [line for line in lines if line in titles] == titles

    def documented(schema):
        for line in (schema.__doc__ or "").split("Args:")[1].split("\n"):
            if ": " in line:
                yield line.split(": ", 1)[1].strip()

    for field in dataclasses.fields(TrainConfig):
        assert f"--{field.name}" in shown
        if dataclasses.is_dataclass(field.default_factory):
            for inner in dataclasses.fields(field.default_factory):
                assert f"--{field.name}.{inner.name}" in shown
            assert all(text in shown for text in documented(field.default_factory))
    assert all(text in shown for text in documented(TrainConfig))
    assert "[tokens]" in shown
    printed = run_module("jaxs1.train", "--config", "configs/s1_7b.yaml", "--print_config")
    assert printed.returncode == 0
    assert yaml.safe_load(printed.stdout)["mesh"]["context"] == 4


PUBLISHED = {  # parameters in billions, from the model cards
    "qwen2.5-0.5b": 0.49,
    "qwen2.5-1.5b": 1.54,
    "qwen2.5-3b": 3.09,
    "qwen2.5-7b": 7.61,
    "qwen2.5-14b": 14.7,
    "qwen2.5-32b": 32.5,
    "qwen2.5-72b": 72.7,
    "qwen3-0.6b": 0.6,
    "qwen3-1.7b": 1.7,
    "qwen3-4b": 4.0,
    "qwen3-8b": 8.2,
    "qwen3-14b": 14.8,
    "qwen3-32b": 32.8,
    "qwen3-30b-a3b": 30.5,
    "qwen3-235b-a22b": 235,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_architectures_have_their_published_sizes(name):
    path = CONFIGS / "models" / f"{name}.json"
    architecture = Architecture.from_hf(read_config(path), str(path))
    assert architecture.num_parameters / 1e9 == pytest.approx(PUBLISHED[name], rel=0.015)


@pytest.mark.parametrize(("name", "active"), [("qwen3-30b-a3b", 3.3), ("qwen3-235b-a22b", 22)])
def test_experts_in_use_have_their_published_size(name, active):
    path = CONFIGS / "models" / f"{name}.json"
    architecture = Architecture.from_hf(read_config(path), str(path))
    assert architecture.active_parameters / 1e9 == pytest.approx(active, rel=0.02)
    assert architecture.train_flops(1, 0) / 6e9 == pytest.approx(active, rel=0.1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gemma2"}, ["model_type='gemma2'", "qwen2"]),
        ({"hidden_size": None}, ["hidden_size is missing"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads=3", "num_attention_heads=14"]),
        ({"use_sliding_window": True, "sliding_window": 512}, ["sliding_window=512"]),
        ({"rope_scaling": {"type": "longrope"}}, ["longrope", "rope_scaling"]),
        ({"hidden_act": "gelu"}, ["hidden_act='gelu'"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers=0"]),
        ({"vocab_size": "many"}, ["vocab_size='many'"]),
        ({"head_dim": 7}, ["head_dim=7", "even"]),
    ],
)
def test_unsupported_architecture_is_one_line(change, words):
    config = json.loads((CONFIGS / "models" / "qwen2.5-0.5b.json").read_text()) | change
    with pytest.raises(UserError) as error:
        Architecture.from_hf(config, "config.json")
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
