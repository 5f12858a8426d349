"""What a model's folder declares: read, kept with the tokenizer, written by training."""

import json

import pytest
import transformers

from jaxs1.config import UserError
from jaxs1.data.delimiters import check_preset, choose_preset
from jaxs1.data.model_settings import (
    ModelSettings,
    attach_settings,
    read_settings,
    settings_of,
    with_preset,
)
from jaxs1.data.tokenizer import load_tokenizer
from tests.data.templates import S1, TEMPLATES, folder_with, tokenizer_with


def write(folder, **files):
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        ({}, {}, ()),
        ({"eos_token_id": 3}, {"eos_token_id": None}, (3,)),
        ({"eos_token_id": [3, 5]}, {"eos_token_id": 4}, (3, 5, 4)),
        ({"eos_token_id": []}, {"eos_token_id": [4, 4]}, (4,)),
        ({"eos_token_id": [1, 2]}, {"eos_token_id": [2, 1]}, (1, 2)),
    ],
)
def test_all_ends_of_both_files(generation, config, ends, tmp_path):
    folder = write(tmp_path, generation_config=generation, config=config)
    assert read_settings(folder) == ModelSettings(None, ends)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not valid JSON"),
        ("[" * 200_000, "is not valid JSON"),
        ("[1]", "must be a JSON object, is a list"),
        ("\ud83d".encode("utf-8", "surrogatepass"), "is not valid JSON"),
        ({"eos_token_id": "</s>"}, "eos_token_id='</s>': must be a token id or a list"),
        ({"eos_token_id": [1, None]}, r"eos_token_id=\[1, None\]: must be"),
        ({"eos_token_id": True}, "eos_token_id=True: must be"),
        ({"eos_token_id": 1.5}, "eos_token_id=1.5: must be"),
        ({"eos_token_id": {"a": 1}}, "eos_token_id={'a': 1}: must be"),
        ({"jaxs1": {"preset": "s2"}}, "jaxs1.preset='s2': must be one of s1, think_tags"),
        ({"jaxs1": ["s1"]}, r"jaxs1.preset=\['s1'\]: must be one of"),
    ],
)
def test_a_malformed_file_is_one_line(content, words, tmp_path):
    if isinstance(content, bytes):
        (tmp_path / "generation_config.json").write_bytes(content)
    else:
        write(tmp_path, generation_config=content)
    with pytest.raises(UserError, match=f"generation_config.json: {words}") as error:
        read_settings(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_a_declared_preset_is_read_by_us_and_ignored_by_transformers(tmp_path):
    content = {"eos_token_id": [1, 2], "top_k": 5}
    assert with_preset(content, None) == content
    write(tmp_path, generation_config=with_preset(content, "s1"))
    assert read_settings(tmp_path) == ModelSettings("s1", (1, 2))
    assert transformers.GenerationConfig.from_pretrained(tmp_path).eos_token_id == [1, 2]


@pytest.mark.parametrize("name", TEMPLATES)
def test_auto(name, tmp_path):
    """Tags where the template or the vocabulary has them; what the folder declares comes first."""
    tokenizer = load_tokenizer(folder_with(name))
    assert settings_of(tokenizer) == ModelSettings()
    assert choose_preset("auto", tokenizer) == ("s1" if name in S1 else "think_tags")
    write(tmp_path, generation_config={"jaxs1": {"preset": "s1"}})
    attach_settings(tokenizer, tmp_path)
    assert choose_preset("auto", tokenizer) == "s1"
    assert choose_preset("think_tags", tokenizer) == "think_tags"


def test_a_vocabulary_with_the_tag_is_enough():
    tokenizer = load_tokenizer(folder_with("chatml", "</think>"))
    assert choose_preset("auto", tokenizer) == "think_tags"
    check_preset("s1", tokenizer, "preset")  # nothing in the template speaks against it


def test_a_tokenizer_without_the_delimiters():
    tokenizer = load_tokenizer(folder_with("r1"))
    vocabulary = tokenizer.backend_tokenizer.to_str().replace("<|im_start|>", "<|other|>")
    other = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer.from_str(vocabulary)
    )
    with pytest.raises(UserError, match=r"preset=s1: .*no token <\|im_start\|>; set preset=think_"):
        check_preset("s1", other, "preset")
    check_preset("s1", tokenizer_with("chatml"), "preset")
