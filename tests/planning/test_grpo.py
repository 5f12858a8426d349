"""A roll-out and its step, planned: bytes by hand, what fits, and the line that a mistake gets."""

import json
from types import SimpleNamespace

import pytest

from jaxs1 import plan
from jaxs1.config import UserError, parse
from jaxs1.decoding.loading import CACHE_SHARE, free_for_cache
from jaxs1.planning.compile import TrainProgram
from jaxs1.planning.grpo import GrpoPrograms, plan_grpo
from jaxs1.planning.targets import parse_target
from jaxs1.rl.config import GrpoConfig
from tests.conftest import ROOT
from tests.planning.cases import TINY, devices

SMALL = [
    "--architecture", "configs/models/tiny.json", "--layers", "1", "--target", "cpu:8",
    "--prompts", "4", "--group", "2", "--rows", "2", "--row_length", "512", "--tensor", "2",
    "--budgets.values", "[64]", "--thinking.max_answer_tokens", "32", "--compute.dtype", "float32",
    "--compute.loss_chunk", "64", "--limits.max_num_seqs", "4", "--limits.max_seq_len", "256",
    "--limits.prefill_chunk_tokens", "64", "--limits.decode_steps", "2",
]  # fmt: skip
RECIPE = ["--config", "configs/grpo_7b.yaml"]
STEP = TrainProgram(parameters=4, optimizer=8, batch=1, temporaries=7, peak=20, products=0)
PROGRAMS = GrpoPrograms(
    held=14, reference=2, weights=5, cache=30, cache_tokens=64, converting=40, prefilling=6,
    decoding=3, scoring=0, step=STEP,
)  # fmt: skip


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """Figures of a tiny plan with a KL divergence, on fsdp 2 x context 4."""
    folder = tmp_path_factory.mktemp("plan")
    shapes = json.loads((ROOT / "configs" / "models" / "tiny.json").read_text())
    (folder / "config.json").write_text(json.dumps(shapes | {"vocab_size": 512}))
    file = folder / "plan.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "use_only_cpu", lambda: None)
        words = [*RECIPE, *SMALL, "--objective.kl", "0.01", "--architecture"]
        assert plan.main([*words, str(folder / "config.json"), "--output", str(file)]) == 0
    return json.loads(file.read_text())


@pytest.mark.slow
def test_bytes_are_those_of_the_arrays(planned):
    """One layer of tiny.json: 8 devices share what is trained, 2 share a copy that decodes."""
    D, F, N, K, H, V = 128, 384, 4, 2, 32, 512
    split = D * (2 * N * H + 2 * K * H + 3 * F) + V * D
    biases, norms = N * H + 2 * K * H, 3 * D
    on_each = {"trained": split / 8, "decoded": split / 2}
    parameters = 4 * (on_each["trained"] + biases + norms)
    assert planned["step"]["parameters"] == parameters
    assert planned["reference"] == parameters
    counters = planned["step"]["optimizer"] - 2 * parameters
    assert 0 <= counters <= 16
    assert planned["held"] == 4 * parameters + counters
    assert planned["weights"] == 4 * (on_each["decoded"] + biases / 2 + norms)
    assert planned["cache_tokens"] == 4 * 256
    assert planned["cache"] == 2 * (4 * 256 + 64) * K * H * 4 / 2


@pytest.mark.slow
def test_roll_out_and_step_are_apart(planned):
    """Decoding's weights and cache do not count in the step, its batch not in the roll-out."""
    working = max(planned["prefilling"], planned["decoding"])
    running = planned["held"] + planned["weights"] + planned["cache"] + working
    casting = planned["held"] + planned["weights"] + planned["converting"]
    assert planned["rollout_peak_bytes"] == max(running, casting)
    step = planned["reference"] + planned["step"]["peak"]
    assert planned["step_peak_bytes"] == max(step, planned["held"] + planned["scoring"])
    assert min(planned[x] for x in ("converting", "prefilling", "decoding", "scoring")) > 0
    # 8 sequences of 256 tokens in rows of 512: tokens, targets, positions, segments, five columns
    # of four bytes, and one bool, on 8 devices
    assert planned["micro_batches"] == 2
    assert planned["step"]["batch"] == 2 * 2 * 512 * (9 * 4 + 1 - 4) / 8
    assert "all-to-all" in planned["step"]["collectives"]


def test_peaks_by_hand():
    """Weights are cast before there is a cache."""
    assert PROGRAMS.rollout_peak == 14 + 5 + 40
    assert PROGRAMS.step_peak == 2 + 20
    fewer = PROGRAMS.__class__(**vars(PROGRAMS) | {"converting": 1, "scoring": 9})
    assert fewer.rollout_peak == 14 + 5 + 30 + 6 and fewer.step_peak == 14 + 9
    assert fewer.fits(55) and not fewer.fits(54)


def config(name, *words):
    recipe = ["--task", "none", "--config", str(ROOT / "configs" / f"{name}.yaml")]
    return parse(GrpoConfig, [*recipe, *words], command="test")


def test_the_cache_takes_what_state_and_weights_leave():
    """An H100 with a model that leaves little: 90 % of the rest, in whole pages."""
    words = ("--limits.max_num_seqs", "1000000", "--limits.max_seq_len", "4096")
    run = plan_grpo(config("grpo_7b", *words), TINY, parse_target("h100:1x8"), devices("cpu:8"))
    left = run.target.available - run.held - run.weights
    page = 64 * 2 * TINY.num_layers * TINY.num_kv_heads * TINY.head_dim * 2
    assert run.cache_pages == int(CACHE_SHARE * left) // page
    assert run.model.compute.attention == "xla"  # the devices here are CPUs


def test_weights_that_are_not_loaded_yet_are_left_free():
    stats = {"bytes_limit": 1000, "bytes_in_use": 300}
    device = SimpleNamespace(memory_stats=lambda: stats)
    mesh = SimpleNamespace(devices=SimpleNamespace(flat=[device, device]))
    rules = SimpleNamespace(mesh=mesh)
    assert free_for_cache(rules) == 2 * 630
    assert free_for_cache(rules, unloaded=200) == 2 * 450


@pytest.mark.parametrize(("name", "number"), [("grpo_7b", 8), ("grpo_32b", 16)])
def test_recipes_are_for_as_many_devices_as_they_say(name, number):
    found = config(name)
    mesh = found.mesh
    assert mesh.data * mesh.fsdp * mesh.context * mesh.tensor == number
    assert found.architecture and found.limits.max_seq_len


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--limits.max_seq_len", "null"], ["limits.max_seq_len=null", "10240"]),
        (["--row_length", "128"], ["limits.max_seq_len=256", "row_length=128"]),
        (["--limits.max_seq_len", "2048", "--row_length", "2048"], ["context=1024"]),
        (["--rows", "3"], ["rows=3", "multiple of mesh.data x mesh.fsdp x mesh.expert=2"]),
        (["--layers", "0"], ["layers=0", "at least 1"]),
        (["--changes", "2"], ["changes"]),
    ],
)
def test_mistakes_are_one_line(arguments, words, monkeypatch):
    monkeypatch.setattr(plan, "use_only_cpu", lambda: None)
    with pytest.raises(UserError) as error:
        plan.main([*RECIPE, *SMALL, *arguments])
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--config", "grpo_32b", "--target", "h100:2x8"], True),
        (["--config=configs/grpo_7b.yaml"], True),
        (["--config", "s1_32b", "--budgets.values", "[64]"], True),
        (["--config", "s1_32b", "--rows", "2"], False),
        (["--config", "no_such_recipe"], False),
        ([], False),
    ],
)
def test_recipes_are_told_apart(words, expected):
    assert plan._is_grpo(words) is expected
