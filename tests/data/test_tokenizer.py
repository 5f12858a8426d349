"""A trained tokenizer loads in transformers and encodes every text without loss."""

import json
import shutil

import pytest
from transformers import AutoTokenizer

from jaxs1.config import UserError
from jaxs1.data.tokenizer import (
    PAD_TOKEN,
    SPECIAL_TOKENS,
    check_vocabulary,
    load_tokenizer,
    padding_id,
    train_tokenizer,
    vocabulary_size,
)

TEXTS = ["the cat sat on the mat", "the dog sat on the log\n", "7*4=28 +6=34"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, folder, words=["42", "Wait"])
    return folder


def test_every_text_survives(folder):
    tokenizer = load_tokenizer(str(folder))
    for text in [*TEXTS, "Ünïcode: 你好 🙂\r\n\t'll 1234", "", " leading and trailing "]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text


def test_frequent_words_and_given_ones_are_single_tokens(folder):
    tokenizer = load_tokenizer(str(folder))
    for word in (" sat", "the", *SPECIAL_TOKENS, "42", "Wait"):
        assert len(tokenizer(word)["input_ids"]) == 1, word
    assert len(tokenizer("zebra")["input_ids"]) > 1
    assert len(tokenizer("x42y")["input_ids"]) == 3


def test_it_is_a_qwen2_tokenizer_with_a_chat_template(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert "Qwen2" in type(tokenizer).__name__
    assert tokenizer.eos_token == "<|im_end|>"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"


def test_same_texts_give_the_same_files(folder, tmp_path):
    train_tokenizer(TEXTS, tmp_path, words=["42", "Wait"])
    names = sorted(p.name for p in folder.iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    for name in names:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_vocabulary_is_limited(tmp_path):
    train_tokenizer(TEXTS, tmp_path, vocabulary=263)
    assert len(load_tokenizer(str(tmp_path))) == 263


def test_padding_is_a_token_of_its_own_or_the_tokenizers(folder):
    tokenizer = load_tokenizer(str(folder))
    assert padding_id(tokenizer) == tokenizer.convert_tokens_to_ids(PAD_TOKEN)
    assert padding_id(tokenizer) not in (tokenizer.eos_token_id, tokenizer.pad_token_id)

    class Other:
        pad_token_id = 7

        def get_vocab(self):
            return {"a": 0}

    assert padding_id(Other()) == 7


def test_unknown_tokenizer_is_one_line():
    with pytest.raises(UserError, match=r"tokenizer=/nowhere/at/all: ") as error:
        load_tokenizer("/nowhere/at/all")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "files",
    [
        [],
        ["config.json"],
        ["config.json", "tokenizer_config.json", "chat_template.jinja"],
        ["config.json", "vocab.json"],  # a vocabulary without merges
    ],
)
def test_a_folder_without_tokenizer_files_is_refused(files, folder, tmp_path):
    """transformers makes an empty tokenizer of it, which encodes every text to nothing."""
    for name in files:
        (tmp_path / name).write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(UserError, match="has no tokenizer files") as error:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value) and "tokenizer.json" in str(error.value)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "\x00", '{"model": 3}', '{"version": "1.0", "model": {"type": "BPE"}}'],
)
def test_a_broken_tokenizer_file_is_one_line(content, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "broken")
    (tmp_path / "broken/tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="tokenizer=broken: ") as error:
        load_tokenizer("broken")
    assert "\n" not in str(error.value) and len(str(error.value)) <= 300


def test_a_tokenizer_without_words_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "empty")
    file = tmp_path / "empty/tokenizer.json"
    content = json.loads(file.read_text())
    content["model"] |= {"vocab": {}, "merges": []}
    content["added_tokens"] = []
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"empty: (encodes text to no token|cannot be loaded)"):
        load_tokenizer(str(tmp_path / "empty"))


def test_ids_beyond_the_model_are_refused_where_the_number_of_tokens_fits(folder, tmp_path):
    """An id beyond the embedding would be looked up in its last row, without an error."""
    shutil.copytree(folder, tmp_path / "gap")
    file = tmp_path / "gap/tokenizer.json"
    content = json.loads(file.read_text())
    words = content["model"]["vocab"]
    count = len(load_tokenizer(str(folder)))
    words[max(words, key=words.get)] = 1000  # leaves a gap
    file.write_text(json.dumps(content))
    tokenizer = load_tokenizer(str(tmp_path / "gap"))
    assert len(tokenizer) <= count < vocabulary_size(tokenizer) == 1001
    check_vocabulary(load_tokenizer(str(folder)), "it", count)
    with pytest.raises(UserError, match="tokenizer=it: has 1001 tokens, more than "):
        check_vocabulary(tokenizer, "it", 512)
