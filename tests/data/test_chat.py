"""The text and the loss mask of s1's training, with a small tokenizer and with Qwen2.5's."""

import functools
import json

import numpy as np
import pytest

from jaxs1.config import UserError
from jaxs1.data.chat import Record, encode, reasoning
from jaxs1.data.config import DataConfig
from jaxs1.data.delimiters import ANSWER
from jaxs1.data.records import load_records
from jaxs1.data.tokenizer import CHAT_TEMPLATE, load_tokenizer, train_tokenizer

#: What Qwen2.5's own template writes before a conversation without a system message.
SYSTEM = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    "<|im_end|>\n"
)
load_tokenizer = functools.cache(load_tokenizer)


@pytest.fixture(scope="module")
def small_tokenizer(tmp_path_factory):
    """Trained on two sentences, with the part of Qwen2.5's template that these tests reach."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["First, one and one.\nSo two.", "user\nassistant\nsystem"], folder)
    tokenizer = load_tokenizer(str(folder))
    tokenizer.chat_template = f"{{{{- {SYSTEM!r} }}}}{CHAT_TEMPLATE}"
    return tokenizer


@pytest.fixture(params=["small", "qwen2.5"])
def tokenizer(request):
    if request.param == "small":
        return request.getfixturevalue("small_tokenizer")
    folder = request.getfixturevalue("shared_data") / "qwen2.5-tokenizer"
    return load_tokenizer(str(folder))


def test_exact_text_and_mask_of_s1(tokenizer):
    content = reasoning("  First, 1+1.\nSo 2.\n", "2\n")
    messages = ({"role": "user", "content": "1+1?"}, {"role": "assistant", "content": content})
    (example,) = encode([Record("here", messages)], tokenizer)
    prompt = f"{SYSTEM}<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    answer = "<|im_start|>think\nFirst, 1+1.\nSo 2.\n<|im_start|>answer\nAnswer: 2<|im_end|>\n"
    assert tokenizer.decode(example.tokens) == prompt + answer
    assert tokenizer.decode(example.tokens[example.is_target]) == answer
    assert tokenizer.decode(example.tokens[~example.is_target]) == prompt
    # the delimiters are the special ids, not the letters' pieces
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert [int(t) for t in example.tokens if t in (start, end)] == [
        *[start, end] * 2,
        *[start, start, start, end],
    ]
    assert (start, end) == ((151644, 151645) if len(tokenizer) > 1000 else (1, 2))


@pytest.mark.parametrize(
    ("attempt", "rendered"),
    [("2", "Answer: 2"), ("Answer: 2", "Answer: 2"), ("Final Answer: 2", "Final Answer: 2")],
)
def test_answer_is_announced_once(attempt, rendered):
    assert reasoning("t", attempt).endswith(f"{ANSWER}\n{rendered}")


def test_every_assistant_turn_counts(tokenizer):
    turns = [("user", "a"), ("assistant", "first"), ("user", "b"), ("assistant", "second")]
    messages = tuple({"role": role, "content": content} for role, content in turns)
    (example,) = encode([Record("here", messages)], tokenizer)
    counted = tokenizer.decode(example.tokens[example.is_target])
    assert counted == "first<|im_end|>\nsecond<|im_end|>\n"


def marked(tokens, tokenizer):
    """s1's mask (TRL's completion-only collator): from every response marker to an instruction."""
    response, instruction = (
        tokenizer(f"<|im_start|>{text}", add_special_tokens=False)["input_ids"]
        for text in ("assistant\n", "user")
    )
    mask, on, i = [], False, 0
    while i < len(tokens):
        if list(tokens[i : i + len(response)]) == response:
            mask += [on] * len(response)
            on, i = True, i + len(response)
            continue
        on = on and list(tokens[i : i + len(instruction)]) != instruction
        mask.append(on)
        i += 1
    return mask


def test_tokens_and_mask_are_those_of_s1(tokenizer):
    """Chats of user and assistant: the template's text in one piece, the mask of its markers."""
    rng = np.random.default_rng(0)
    words = ["First", " one", " and", "\n", "two.", " ", "\n\n", "<b>", "é", "12"]
    records = []
    for _ in range(60):
        turns = []
        for role in ["user", "assistant"] * rng.integers(1, 4):
            body = "".join(rng.choice(words, rng.integers(0, 9)))
            turns.append({"role": role, "content": "So" + body})
            if role == "assistant" and rng.random() < 0.5:
                turns[-1]["content"] = reasoning(body + "x", body)
        records.append(Record("here", tuple(turns)))
    for record, example in zip(records, encode(records, tokenizer), strict=True):
        text = tokenizer.apply_chat_template(list(record.messages), tokenize=False)
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert example.tokens.tolist() == tokens
        assert example.is_target.tolist() == marked(tokens, tokenizer)


def test_plain_text_counts_everything_and_ends(tokenizer):
    (example,) = encode([Record("here", text="one two")], tokenizer)
    assert tokenizer.decode(example.tokens) == "one two<|endoftext|>"
    assert example.is_target.all()


def test_template_without_assistant_turn_is_refused(tokenizer):
    record = Record("file:3", ({"role": "user", "content": "a"},))
    with pytest.raises(UserError, match=r"file:3: the chat template wrote no"):
        encode([record], tokenizer)


def test_tokenizer_without_a_template_is_refused(small_tokenizer):
    record = Record("file:3", ({"role": "user", "content": "a"},))
    template, small_tokenizer.chat_template = small_tokenizer.chat_template, None
    try:
        with pytest.raises(UserError, match=r"file:3: the chat template cannot render it") as error:
            encode([record], small_tokenizer)
    finally:
        small_tokenizer.chat_template = template
    assert "\n" not in str(error.value)


def test_gsm8k_record_becomes_thinking_and_answer(tokenizer, tmp_path):
    """A record of GSM8K's form, with the calculator's annotations."""
    path = tmp_path / "gsm8k.jsonl"
    answer = "Two cats have 2 * 4 = <<2*4=8>>8 legs.\nWith a bird: 8 + 2 = <<8+2=10>>10.\n#### 10"
    path.write_text(json.dumps({"question": "How many legs?", "answer": answer}) + "\n")
    name, records = load_records(DataConfig(path=str(path)))
    [example] = encode(records, tokenizer)
    assert name == "gsm8k"
    assert tokenizer.decode(example.tokens[example.is_target]) == (
        "<|im_start|>think\n"
        "Two cats have 2 * 4 = 8 legs.\n"
        "With a bird: 8 + 2 = 10.\n"
        "<|im_start|>answer\nAnswer: 10<|im_end|>\n"
    )


def test_first_records_of_gsm8k(shared_data):
    tokenizer = load_tokenizer(str(shared_data / "qwen2.5-tokenizer"))
    path = str(shared_data / "gsm8k" / "test.jsonl")
    name, records = load_records(DataConfig(path=path, limit=200))
    examples = encode(records, tokenizer)
    assert (name, len(examples)) == ("gsm8k", 200)
    text = tokenizer.decode(examples[0].tokens[examples[0].is_target])
    assert text == (
        "<|im_start|>think\n"
        "Janet sells 16 - 3 - 4 = 9 duck eggs a day.\n"
        "She makes 9 * 2 = $18 every day at the farmer’s market.\n"
        "<|im_start|>answer\nAnswer: 18<|im_end|>\n"
    )
