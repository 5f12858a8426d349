"""Texts become the right ids; texts that do not suit a tokenizer are told in one line."""

import pytest

from jaxs1.config import UserError
from jaxs1.decoding import budget
from jaxs1.decoding.controls import fit
from jaxs1.decoding.params import Delimiters, ThinkingParams
from jaxs1.decoding.tokenized_thinking import resolve_auto, tokenize_thinking
from tests.decoding.words import Words, tag_tokenizer

IM_START, IM_END, END_OF_TEXT, ANSWER = 151644, 151645, 151643, 9217


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


def test_think_tags_where_the_end_is_several_tokens():
    """Pieces that keep to themselves, except that the last one takes line breaks, as with BPE."""
    words = Words("<", "</", ">", ">\n", ">\n\n")
    thinking = tokenize_thinking(ThinkingParams(preset="think_tags"), words)
    assert len(thinking.close) > 1
    spelled = [words.decode(ids) for ids in thinking.ends]
    assert spelled[:3] == ["</think>", "</think>\n", "</think>\n\n"]
    assert thinking.resume[:3] == (len(thinking.close),) * 3
    assert words.decode(thinking.start) == "<think>\n"
    assert words.decode(thinking.reopen) == "<think>"
    for mode in ("s1_readme", "s1_harness"):
        with pytest.raises(UserError, match=r"thinking.mode=.*</think>.*thinking.mode=strict"):
            tokenize_thinking(ThinkingParams(preset="think_tags", mode=mode), words)


@pytest.mark.parametrize("neighbour", [".</", "></", ">The", ">4"])
def test_an_end_that_hides_in_its_neighbours_is_refused(neighbour):
    """`done.</think>` and `</think>The` as tokens that begin or end in the middle of the end."""
    words = Words("<", "</", ">", neighbour)
    fields = [{"preset": "think_tags"}, {"delimiters": Delimiters(ends=("</think>",))}]
    for own, name in zip(fields, ["preset=think_tags", "delimiters.ends"], strict=True):
        with pytest.raises(UserError, match=rf"thinking.{name}: .* merge .*set thinking.preset=s1"):
            tokenize_thinking(ThinkingParams(**own), words)
    tokenize_thinking(ThinkingParams(preset="think_tags", mode="off"), words)


def test_think_tags_of_qwen2_5_are_refused(qwen):
    message = r"preset=think_tags: .*'</think>'.* merge .*; set thinking.preset=s1"
    with pytest.raises(UserError, match=message):
        tokenize_thinking(ThinkingParams(preset="think_tags"), qwen)


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
