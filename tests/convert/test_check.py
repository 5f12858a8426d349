import pytest
import torch

from convert import check
from convert.from_hf import from_hf
from convert.to_hf import to_hf
from jaxs1.config import UserError
from jaxs1.data.tokenizer import train_tokenizer
from tests.tiny_models import hf_model


@pytest.fixture
def model(tmp_path):
    model = hf_model("qwen2-tied-14-2")
    model.save_pretrained(tmp_path / "a")
    return model


def test_equal_checkpoints_do_not_differ(model, tmp_path, capsys):
    from_hf(tmp_path / "a", tmp_path / "b")
    assert check.main([str(tmp_path / "a"), str(tmp_path / "b"), "--tolerance", "0"]) == 0
    assert "largest logit difference: 0 of" in capsys.readouterr().out


def test_transformers_agrees(model, tmp_path):
    argv = [str(tmp_path / "a"), str(tmp_path / "a"), "--against", "transformers"]
    assert check.main([*argv, "--tolerance", "2e-5", "--num_prompts", "2"]) == 0


def test_a_changed_weight_is_over_the_tolerance(model, tmp_path, capsys):
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3] *= 1.01
    model.save_pretrained(tmp_path / "b")
    assert check.main([str(tmp_path / "a"), str(tmp_path / "b"), "--length", "8"]) == 1
    assert "over the tolerance" in capsys.readouterr().out


def test_a_narrower_dtype_differs_a_little(model, tmp_path):
    to_hf(tmp_path / "a", tmp_path / "b", "bfloat16")
    options = check.Check(str(tmp_path / "a"), str(tmp_path / "b"))
    assert 1e-4 < check.check(options) < 5e-2


def test_given_prompts(tmp_path):
    hf_model("qwen2-tied-14-2", vocab=384).save_pretrained(tmp_path / "a")
    train_tokenizer(["the first prompt and the second"], tmp_path / "a")
    (tmp_path / "prompts.txt").write_text("the first prompt\n\nanother one\n")
    options = check.Check(
        str(tmp_path / "a"), str(tmp_path / "a"), prompts=str(tmp_path / "prompts.txt")
    )
    assert check.check(options) == 0
    (tmp_path / "prompts.txt").write_text("\n\n")
    with pytest.raises(UserError, match="is empty; give one prompt a line"):
        check.check(options)


def test_another_vocabulary_cannot_be_compared(model, tmp_path):
    hf_model("qwen2-tied-14-2", vocab=80).save_pretrained(tmp_path / "b")
    with pytest.raises(UserError, match="vocab_size=80: must be that of"):
        check.check(check.Check(str(tmp_path / "a"), str(tmp_path / "b")))


def test_a_command_ends_in_one_line_and_status_2(run_module, tmp_path):
    done = run_module("convert.to_hf", tmp_path / "absent", tmp_path / "dst")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {tmp_path}/absent: no such folder")
