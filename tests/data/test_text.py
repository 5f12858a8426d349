"""Text without an encoding, and JSON without an end, are refused where they are read."""

import json

import pytest

from jaxs1.config import UserError
from jaxs1.data.chat import Record, encode
from jaxs1.data.config import DataConfig
from jaxs1.data.records import load_records
from jaxs1.data.sources import Source
from jaxs1.data.text import MAX_DEPTH, check_text, leaves
from jaxs1.data.tokenizer import load_tokenizer
from jaxs1.tasks.benchmarks import QuestionsConfig, load_questions
from tests.data.templates import folder_with, tokenizer_with

HALF = ("\ud83d", "\ude00 a", "a \udfff", "\ude00\ud83d")


def nested(depth):
    value = "end"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("half", HALF)
@pytest.mark.parametrize(
    "row",
    [
        lambda x: {"text": x},
        lambda x: {"question": x, "thinking_trajectories": ["t"], "attempt": "a"},
        lambda x: {"question": "q", "thinking_trajectories": [x], "attempt": "a"},
        lambda x: {"messages": [{"role": "user", "content": x}]},
        lambda x: {"text": "a", "tags": {"more": [x]}},
        lambda x: {"text": "a", x: 1},
    ],
)
def test_half_of_a_surrogate_pair_is_named(half, row, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "good"}) + "\n" + json.dumps(row(half)) + "\n")
    with pytest.raises(UserError, match=r"a.jsonl:2: .*contains .u[d-f].{3}, half") as error:
        list(Source(str(path)).rows())
    assert str(error.value).isprintable()


def test_a_complete_pair_is_a_character(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "\\ud83d\\ude00"}\n')
    assert load_records(DataConfig(path=str(path)))[1][0].text == "😀"


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 900, 100_000])
def test_deep_nesting_is_one_line(depth, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "q", "answer": ' + "[" * depth + "]" * depth + "}\n")
    for read in (
        lambda: load_records(DataConfig(path=str(path))),
        lambda: load_questions(str(path), QuestionsConfig()),
    ):
        with pytest.raises(UserError, match=r"a.jsonl:1: .*(nested more than|not valid JSON)") as e:
            read()
        assert "\n" not in str(e.value) and len(str(e.value)) < 300
    check_text(nested(MAX_DEPTH))


def test_leaves_are_in_order():
    value = {"a": [1, {"b": "c"}], "d": None}
    assert [(x.place, x.value) for x in leaves(value, "x") if not x.is_key] == [
        ("x.a[0]", 1),
        ("x.a[1].b", "c"),
        ("x.d", None),
    ]
    assert [x.value for x in leaves(value) if x.is_key] == ["a", "d", "b"]


@pytest.mark.parametrize("name", ["r1", "v3.1", "chatml"])
def test_plain_text_ends_as_the_tokenizer_ends(name):
    """`<|endoftext|>` where there is one, else the tokenizer's own end."""
    tokenizer = tokenizer_with(name)
    (example,) = encode([Record("here", text="one")], tokenizer)
    assert tokenizer.decode(example.tokens[-1]) == "<|endoftext|>"


@pytest.mark.parametrize("eos", ["</s>", None])
def test_a_tokenizer_without_endoftext(eos, tmp_path):
    renamed = (tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json")
    tokenizer_folder = folder_with("r1")
    for path in renamed:
        with open(f"{tokenizer_folder}/{path.name}") as file:
            path.write_text(file.read().replace("<|endoftext|>", "<|nothing|>"))
    tokenizer = load_tokenizer(str(tmp_path))
    tokenizer.eos_token = eos
    if eos is None:
        with pytest.raises(UserError, match=r"neither <\|endoftext\|> nor an end of its own"):
            encode([Record("here", text="one")], tokenizer)
    else:
        (example,) = encode([Record("here", text="one")], tokenizer)
        assert tokenizer.decode(example.tokens) == "one</s>"
