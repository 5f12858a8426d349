"""What every command refuses in the same way."""

import json
import runpy
import sys
from importlib import import_module

import pytest

import jaxs1
from jaxs1.config import UserError
from tests.tiny_models import hf_model

COMMANDS = {
    "generate": ("jaxs1.generate", "--model {model} --prompt hi"),
    "evaluate": ("jaxs1.evaluate", "--model {model} --task {rows} --output {out}"),
    "train": ("jaxs1.train", "--model {model} --data.path {rows} --output {out}"),
    "train from random weights": (
        "jaxs1.train",
        "--architecture tiny --tokenizer {model} --data.path {rows} --output {out}",
    ),
    "grpo": (
        "jaxs1.grpo",
        "--model {model} --task {rows} --thinking.max_answer_tokens 8 --output {out}",
    ),
    "curate": (
        "jaxs1.curate",
        "--input {rows} --features.tokenizer {model} --output {out} --stages.decontamination false",
    ),
    "check": ("convert.check", "{model} {model} --prompts {rows}"),
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """A model without tokenizer files, and questions."""
    folder = tmp_path_factory.mktemp("commands")
    hf_model("qwen2-untied-4-4").save_pretrained(folder / "model")
    row = {"question": "1+1?", "answer": "one and one\n#### 2"}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return {"model": folder / "model", "rows": folder / "rows.jsonl", "out": folder / "out"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_without_tokenizer_files(command, paths):
    module, arguments = COMMANDS[command]
    with pytest.raises(UserError, match="has no tokenizer files") as error:
        import_module(module).main([word.format(**paths) for word in arguments.split()])
    assert "\n" not in str(error.value) and str(paths["model"]) in str(error.value)
    assert not paths["out"].exists()


def test_a_model_without_tokenizer_files_in_python(paths):
    with pytest.raises(UserError, match="has no tokenizer files"):
        jaxs1.LLM(paths["model"])


def test_the_harness_is_not_installed(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("jaxs1.lm_eval", run_name="__main__")
    assert ended.value.code == 2
    error = "error: lm_eval is not installed; pip install 'jaxs1[lm-eval]'\n"
    assert capsys.readouterr().err == error
    monkeypatch.delitem(sys.modules, "jaxs1.lm_eval", raising=False)
    with pytest.raises(ImportError):  # of a program, which may go on without it
        import_module("jaxs1.lm_eval")
