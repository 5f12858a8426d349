"""The text and the loss mask of s1's training, on the real tokenizer."""

import numpy as np
import pytest

from jaxs1.config import UserError
from jaxs1.data import chat
from jaxs1.data.chat import Record, encode, reasoning, response_mask
from jaxs1.data.config import DataConfig
from jaxs1.data.records import load_records
from jaxs1.data.tokenizer import load_tokenizer, padding_id


@pytest.fixture(scope="session")
def tokenizer():
    from tests.conftest import SHARED

    if not SHARED.is_dir():
        pytest.skip("needs the real tokenizer in shared/data")
    return load_tokenizer(str(SHARED / "qwen2.5-tokenizer"))


def test_exact_text_and_mask_of_s1(tokenizer):
    content = reasoning("  First, 1+1.\nSo 2.\n", "2\n")
    messages = ({"role": "user", "content": "1+1?"}, {"role": "assistant", "content": content})
    (example,) = encode([Record("here", messages)], tokenizer)
    prompt = (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        "<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    )
    answer = "<|im_start|>think\nFirst, 1+1.\nSo 2.\n<|im_start|>answer\nAnswer: 2<|im_end|>\n"
    assert tokenizer.decode(example.tokens) == prompt + answer
    assert tokenizer.decode(example.tokens[example.is_target]) == answer
    assert tokenizer.decode(example.tokens[~example.is_target]) == prompt
    special = [151644, 151645]  # the delimiters are the special ids, not the letters' pieces
    assert [int(t) for t in example.tokens if t in special] == [
        *[151644, 151645] * 2,
        *[151644, 151644, 151644, 151645],
    ]
    assert padding_id(tokenizer) == 151662


@pytest.mark.parametrize(
    ("attempt", "rendered"),
    [("2", "Answer: 2"), ("Answer: 2", "Answer: 2"), ("Final Answer: 2", "Final Answer: 2")],
)
def test_answer_is_announced_once(attempt, rendered):
    assert reasoning("t", attempt).endswith(f"{chat.ANSWER}\n{rendered}")


def test_every_assistant_turn_counts(tokenizer):
    turns = [("user", "a"), ("assistant", "first"), ("user", "b"), ("assistant", "second")]
    messages = tuple({"role": role, "content": content} for role, content in turns)
    (example,) = encode([Record("here", messages)], tokenizer)
    counted = tokenizer.decode(example.tokens[example.is_target])
    assert counted == "first<|im_end|>\nsecond<|im_end|>\n"


def test_mask_equals_a_plain_search():
    rng = np.random.default_rng(0)
    response, instruction = [7, 8], [7, 9]
    for _ in range(300):
        tokens = rng.integers(6, 10, rng.integers(0, 30)).astype(np.int32)
        expected, on, i = [], False, 0
        while i < len(tokens):
            pair = list(tokens[i : i + 2])
            if pair == response:
                expected += [on, on]  # a marker inside an answer belongs to it
                on, i = True, i + 2
                continue
            if pair == instruction:
                on = False
            expected.append(on)
            i += 1
        found = response_mask(tokens, response, instruction)
        assert found.tolist() == [bool(e) for e in expected], tokens


def test_plain_text_counts_everything_and_ends(tokenizer):
    (example,) = encode([Record("here", text="one two")], tokenizer)
    assert tokenizer.decode(example.tokens) == "one two<|endoftext|>"
    assert example.is_target.all()


def test_template_without_assistant_turn_is_refused(tokenizer):
    record = Record("file:3", ({"role": "user", "content": "a"},))
    with pytest.raises(UserError, match=r"file:3: the chat template wrote no"):
        encode([record], tokenizer)


def test_unknown_tokenizer_is_one_line():
    with pytest.raises(UserError, match=r"tokenizer=/nowhere/at/all: ") as error:
        load_tokenizer("/nowhere/at/all")
    assert "\n" not in str(error.value)


def test_gsm8k_whole(shared_data, tokenizer):
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
