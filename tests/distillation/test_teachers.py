"""Thinking and answer of a reply, in the spellings of several servers."""

import pytest

from jaxs1.distillation.teachers import read_reply, split_thinking


def reply(message, **more):
    return {"choices": [{"message": message, "finish_reason": "stop"}], **more}


@pytest.mark.parametrize(
    "message",
    [
        {"reasoning": "Hm.", "content": "4"},
        {"reasoning_content": " Hm. ", "content": "\n\n4"},
        {"reasoning": "Hm.", "reasoning_content": "Hm.", "content": "4"},
        {"reasoning": None, "reasoning_content": "Hm.", "content": "4"},
        {"content": "<think>\nHm.\n</think>\n\n4"},
        {"content": "Hm.\n</think>\n\n4"},
        {"reasoning_content": "", "content": "<think>Hm.</think>4"},
    ],
)
def test_spellings(message):
    usage = {"prompt_tokens": 3, "completion_tokens": 5}
    found = read_reply(reply(message, usage=usage))
    assert (found.thinking, found.answer, found.finish_reason) == ("Hm.", "4", "stop")
    assert (found.prompt_tokens, found.completion_tokens) == (3, 5)


def test_what_is_missing_is_empty():
    found = read_reply(reply({"content": None, "reasoning": "Hm."}))
    assert (found.thinking, found.answer, found.prompt_tokens) == ("Hm.", "", None)
    found = read_reply(reply({"content": "4"}, usage={"prompt_tokens": "many"}))
    assert (found.thinking, found.answer, found.prompt_tokens) == ("", "4", None)
    assert split_thinking("<think>and never an end") == ("and never an end", "")
    assert split_thinking("a <think> inside") == ("", "a <think> inside")


@pytest.mark.parametrize(
    "broken",
    [{}, [], {"choices": []}, {"choices": None}, {"error": {"message": "busy"}},
     {"choices": [{"message": None}]}, {"choices": [{"message": {"content": ["4"]}}]}],
)  # fmt: skip
def test_what_is_no_completion(broken):
    with pytest.raises((LookupError, TypeError, AttributeError)):
        read_reply(broken)
