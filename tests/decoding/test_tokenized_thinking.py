"""Texts become the right ids, budgets fit or say so, and what is wrong is told in one line."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxs1.config import UserError, parse, to_yaml
from jaxs1.data.tokenizer import load_tokenizer
from jaxs1.decoding import budget
from jaxs1.decoding.budget import EndedBy, Finish, Phase, TokenKind
from jaxs1.decoding.controls import build_controls, check_sizes, fit, newline_table
from jaxs1.decoding.params import PRESETS, Delimiters, ThinkingParams
from jaxs1.decoding.tokenized_thinking import resolve_auto, tokenize_thinking

IM_START, IM_END, END_OF_TEXT, ANSWER = 151644, 151645, 151643, 9217


@pytest.fixture(scope="module")
def qwen():
    from tests.conftest import SHARED

    if not SHARED.is_dir():
        pytest.skip("needs the shared data beside the repository")
    return load_tokenizer(str(SHARED / "qwen2.5-tokenizer"))


class Words:
    """A tokenizer of whole words, which knows a few special ones; for tests without real data."""

    eos_token_id = 1
    vocabulary = ("", "<eos>", "<|im_start|>", "<|im_end|>", "think", "answer", "\n", "Wait", "x")

    def __init__(self, *more):
        self.words = (*self.vocabulary, *more)

    def __len__(self):
        return len(self.words)

    def __call__(self, text, add_special_tokens=True):
        assert not add_special_tokens
        ids = []
        while text:
            known = [w for w in self.words[1:] if text.startswith(w)]
            word = max(known, key=len) if known else "x"
            ids.append(self.words.index(word))
            text = text[len(word) if known else 1 :]
        return {"input_ids": ids}

    def decode(self, ids):
        return "".join(self.words[i] for i in ids)

    def batch_decode(self, rows):
        return [self.decode(row) for row in rows]


def tag_tokenizer():
    return Words("<think>", "</think>")


def test_s1_in_ids_of_qwen(qwen):
    thinking = tokenize_thinking(
        ThinkingParams(num_waits=2, wait_strings=("Wait", "Hmm"), answer_prefix="\nFinal Answer:"),
        qwen,
    )
    assert qwen.decode(thinking.start) == "<|im_start|>think" and thinking.start[0] == IM_START
    assert thinking.close == (IM_START, ANSWER)
    assert dict(zip(thinking.ends, thinking.resume, strict=True)) == {
        (IM_START,): 1,
        (IM_END,): budget.NONE,
        (END_OF_TEXT,): budget.NONE,
    }
    assert set(thinking.stops) == {(IM_END,), (END_OF_TEXT,)}
    assert thinking.reopen == thinking.start
    assert qwen.decode(thinking.cut) == "\n<|im_start|>answer\nFinal Answer:"
    assert thinking.close + thinking.answer_prefix == tuple(
        qwen("<|im_start|>answer\nFinal Answer:")["input_ids"]
    )
    assert [qwen.decode(w) for w in thinking.waits] == ["Wait", "Hmm"]


def test_think_tags_where_the_end_is_several_tokens(qwen):
    thinking = tokenize_thinking(ThinkingParams(preset="think_tags"), qwen)
    assert len(thinking.close) > 1
    spelled = [qwen.decode(ids) for ids in thinking.ends]
    assert spelled[:3] == ["</think>", "</think>\n", "</think>\n\n"]
    assert thinking.resume[:3] == (len(thinking.close),) * 3
    assert qwen.decode(thinking.start) == "<think>\n" and qwen.decode(thinking.reopen) == "<think>"
    for mode in ("s1_readme", "s1_harness"):
        with pytest.raises(UserError, match=r"thinking.mode=.*</think>.*thinking.mode=strict"):
            tokenize_thinking(ThinkingParams(preset="think_tags", mode=mode), qwen)


def test_think_tags_where_the_end_is_one_token():
    """Spellings that would never be reached are dropped, and s1's modes accept it."""
    tokenizer = tag_tokenizer()
    end = len(tokenizer) - 1
    thinking = tokenize_thinking(ThinkingParams(preset="think_tags", mode="s1_harness"), tokenizer)
    assert thinking.close == (end,) and thinking.ends[0] == (end,)
    assert thinking.resume[0] == 1
    assert [ids for ids in thinking.ends if ids[0] == end] == [(end,)]


@pytest.mark.parametrize("mode", ["strict", "s1_readme", "s1_harness", "off"])
def test_what_the_modes_write(mode):
    thinking = tokenize_thinking(ThinkingParams(mode=mode), Words())
    silent = mode in ("s1_readme", "off")
    assert (thinking.cut == ()) == silent
    assert bool(thinking.answer_prefix) == (mode == "s1_harness")
    assert (thinking.start == ()) == (mode == "off")
    assert (thinking.reopen != ()) == (mode == "strict")
    assert thinking.reserved_tokens == len(thinking.cut) + 100


def test_custom_delimiters():
    own = Delimiters(start="<think>", close="</think>\n", line_break="")
    thinking = tokenize_thinking(
        ThinkingParams(preset="think_tags", delimiters=own), tag_tokenizer()
    )
    end = len(tag_tokenizer()) - 1
    assert thinking.close == thinking.cut == (end, 6)
    assert thinking.resume[0] == 1  # behind the model's own </think> the line break is written


def test_newlines(qwen):
    is_newline_V = newline_table(qwen)
    assert is_newline_V.shape == (len(qwen),)
    for text, expected in {"\n": True, ".\n\n": True, "x": False, "\n ": False}.items():
        assert is_newline_V[qwen(text)["input_ids"][-1]] == expected, text
    assert not is_newline_V[IM_START]


def one(thinking, prompt_length, context=400, tokenizer=None):
    tokenizer = tokenizer or Words()
    thinking = tokenize_thinking(thinking, tokenizer)
    prompt = [8] * prompt_length + list(thinking.start)
    limits = fit(thinking, len(prompt), context)
    return build_controls([thinking], [prompt], [limits]), limits.note


@pytest.mark.parametrize("prompt_length", [1, 10, 200])
def test_a_budget_is_clamped_to_the_context_with_a_note(prompt_length):
    controls, note = one(ThinkingParams(max=10_000), prompt_length)
    left = 400 - prompt_length - 2 - 3 - 100
    assert controls.thinking_budget.tolist() == [left]
    assert note.startswith(f"thinking.max=10000: clamped to {left}")
    controls, note = one(ThinkingParams(max=left), prompt_length)
    assert controls.thinking_budget.tolist() == [left] and note is None
    controls, note = one(ThinkingParams(), prompt_length)
    assert controls.thinking_budget.tolist() == [-1] and note is None


def test_a_run_ends_inside_the_context_with_a_whole_close():
    """A model that never stops: thinking to the reserved_tokens, close, answer to the last token."""
    controls, _ = one(ThinkingParams(min_answer_tokens=20, answer_prefix="\n"), 30, context=100)
    is_newline_V = newline_table(Words())
    state = jax.jit(budget.init)(controls, is_newline_V)
    step = jax.jit(budget.step)
    tokens, kinds = [], []
    while state.phase[0] != Phase.DONE:
        state, token, _ = step(controls, is_newline_V, state, np.asarray([8], np.int32))
        tokens.append(int(token[0]))
        kinds.append(int(state.kind[0]))
    assert 32 + len(tokens) == 100
    assert kinds.count(TokenKind.ANSWER) == 20
    assert tokens[44:48] == [6, 2, 5, 6]
    assert state.ended_by.tolist() == [EndedBy.CONTEXT]
    assert state.finish.tolist() == [Finish.LENGTH]


def test_off_is_all_answer_and_the_rest_of_the_batch_thinks():
    thinking = [
        tokenize_thinking(ThinkingParams(mode=m, max=7), Words()) for m in ("off", "strict")
    ]
    prompts = [[8], [8, 2, 4]]
    limits = [fit(t, len(p), 400) for t, p in zip(thinking, prompts, strict=True)]
    controls = build_controls(thinking, prompts, limits)
    assert jax.jit(budget.init)(controls, newline_table(Words())).phase.tolist() == [
        Phase.ANSWER,
        Phase.THINK,
    ]


def test_auto_is_what_the_harness_chooses():
    thinking = tokenize_thinking(
        ThinkingParams(max="auto", mode="s1_harness", max_answer_tokens=1000), Words()
    )
    chosen = resolve_auto(thinking, [50, 70]).thinking.max
    assert chosen == 1000 - 70 - len(thinking.close + thinking.answer_prefix) - 100
    with pytest.raises(UserError, match=r"thinking.max=auto: .*raise thinking.max_answer_tokens"):
        resolve_auto(thinking, [900])
    with pytest.raises(UserError, match="call resolve_auto"):
        fit(thinking, 10, 100_000)
    plain = tokenize_thinking(ThinkingParams(max=5), Words())
    assert resolve_auto(plain, [3]) is plain


def test_thinking_of_different_shapes_share_sizes():
    tokenizer = tag_tokenizer()
    small = tokenize_thinking(ThinkingParams(), tokenizer)
    large = tokenize_thinking(
        ThinkingParams(preset="think_tags", wait_strings=("Wait", "xxx", "x")), tokenizer
    )
    rows = [build_controls([s], [[8]], [fit(s, 1, 400)]) for s in (small, large)]
    assert jax.tree.map(np.shape, rows[0]) == jax.tree.map(np.shape, rows[1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"wait_strings": ("x",) * 17}, r"number of strings is 17: must be at most 16"),
        ({"wait_strings": ("x" * 65,)}, r"wait_strings: tokens of a wait string.* is 65: .* 64"),
        ({"delimiters": Delimiters(stop=(*"xW\n", "xx", "xxx", "Wait", "think", "answer"))},
         r"number of ends and stops is \d+: must be at most 8; use fewer"),
        ({"delimiters": Delimiters(ends=("x" * 17,))}, r"tokens of an end or a stop is 17: .* 16"),
    ],
)  # fmt: skip
def test_texts_that_exceed_the_arrays(fields, message):
    with pytest.raises(UserError, match=message):
        check_sizes(tokenize_thinking(ThinkingParams(**fields), Words()))
    check_sizes(tokenize_thinking(ThinkingParams(wait_strings=("x",) * 16), Words()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preset": "s2"}, r"thinking.preset='s2': unknown preset; choose one of s1, think_tags"),
        ({"mode": "lax"}, r"thinking.mode='lax': unknown mode; choose one of strict, s1_readme"),
        ({"max": -2}, r"thinking.max=-2: must be -1 or more \(-1: no limit\)"),
        ({"min": -1}, r"thinking.min=-1: must be 0 or more"),
        ({"num_waits": -1}, r"thinking.num_waits=-1: must be 0 or more"),
        ({"max_answer_tokens": 0}, r"thinking.max_answer_tokens=0: leaves no answer"),
        ({"min_answer_tokens": 0}, r"thinking.min_answer_tokens=0: must be 1 or more"),
        ({"min": 9, "max": 8}, r"thinking.min=9: must not exceed thinking.max=8"),
        (
            {"num_waits": 1, "wait_strings": ()},
            r"thinking.num_waits=1: needs at least one string to insert",
        ),
        ({"max": "auto"}, r"thinking.max=auto: requires thinking.mode=s1_harness"),
    ],
)
def test_what_is_wrong_in_itself(fields, message):
    with pytest.raises(UserError, match=message) as caught:
        ThinkingParams(**fields)
    assert "\n" not in str(caught.value)


def test_what_is_wrong_with_this_tokenizer():
    with pytest.raises(UserError, match=r"thinking.wait_strings='': encodes to no token"):
        tokenize_thinking(ThinkingParams(wait_strings=("Wait", "")), Words())
    with pytest.raises(UserError, match=r"thinking.delimiters.close='': encodes to no token"):
        tokenize_thinking(ThinkingParams(delimiters=Delimiters(close="")), Words())
    own = Delimiters(stop=("<|im_end|>", "<|eot|>"))
    with pytest.raises(UserError, match=r"delimiters.stop: the tokenizer has no token <\|eot\|>"):
        tokenize_thinking(ThinkingParams(delimiters=own), Words())
    tokenizer = Words()
    tokenizer.words = tuple("xx" if w == "<|im_start|>" else w for w in tokenizer.words)
    with pytest.raises(UserError, match=r"has no token <\|im_start\|>.*preset=think_tags"):
        tokenize_thinking(ThinkingParams(), tokenizer)


@pytest.mark.parametrize(
    ("fields", "prompt_length", "message"),
    [
        ({}, 399, r"prompt of 401 tokens: leaves 0 of the context's 400"),
        ({}, 296, r"prompt of 298 tokens: leaves 102 .* need 103; shorten it or lower"),
        ({"min": 200}, 200, r"thinking.min=200: does not fit, .* leaves 95 after a prompt of 202"),
        ({"mode": "off"}, 0, r"prompt: is empty"),
    ],
)
def test_what_does_not_fit(fields, prompt_length, message):
    with pytest.raises(UserError, match=message) as caught:
        one(ThinkingParams(**fields), prompt_length)
    assert "\n" not in str(caught.value)


@dataclasses.dataclass(frozen=True)
class Command:
    """A command that thinks.

    Args:
        thinking: how long
    """

    thinking: ThinkingParams = dataclasses.field(default_factory=ThinkingParams)


def test_fields_on_the_command_line_and_in_yaml(tmp_path):
    argv = ["--thinking.max", "512", "--thinking.num_waits", "2", "--thinking.preset", "think_tags"]
    argv += ["--thinking.wait_strings", '["Wait","Hmm"]', "--thinking.delimiters.close", "</t>"]
    command = parse(Command, argv, command="x")
    assert command.thinking.max == 512
    assert tuple(command.thinking.wait_strings) == ("Wait", "Hmm")
    assert command.thinking.delimiters == Delimiters(close="</t>")
    recipe = tmp_path / "x.yaml"
    recipe.write_text(to_yaml(command))
    assert parse(Command, ["--config", str(recipe)], command="x") == command
    assert parse(Command, [], command="x") == Command()
    auto = [
        "--thinking.max",
        "auto",
        "--thinking.mode",
        "s1_harness",
        "--thinking.max_answer_tokens",
        "9",
    ]
    assert parse(Command, auto, command="x").thinking.max == "auto"
    for wrong, message in {
        ("--thinking.max", "many"): r"thinking.max",
        ("--thinking.waits", "2"): r"thinking.waits: no such field; did you mean thinking.\w+",
        ("--thinking.preset", "s2"): r"thinking.preset='s2': unknown preset",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            parse(Command, list(wrong), command="x")
        assert "\n" not in str(caught.value)


def test_help_explains_every_field(capsys):
    with pytest.raises(SystemExit):
        parse(Command, ["--help"], command="x")
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(ThinkingParams):
        assert f"--thinking.{field.name}" in text
    assert "number of times to suppress the end of thinking" in text
    assert "text that begins thinking; appended to the prompt" in text


def test_every_preset_is_complete():
    for preset in PRESETS.values():
        assert all(value is not None for value in vars(preset).values())
