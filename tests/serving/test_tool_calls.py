"""Calls are found in an answer whatever its cuts; what is no call stays text."""

import json
import random

import pytest

from jaxs1.decoding.budget import TokenKind
from jaxs1.decoding.controls import SequenceLimits
from jaxs1.decoding.outputs import Completion, StreamOutput, TokenLog
from jaxs1.serving.choice import Choice
from jaxs1.serving.tool_calls import ToolCall, ToolCalls
from tests.decoding.engines import encode, tokenizer
from tests.serving.local import CHAT, QUESTION

LIMITS = SequenceLimits(budget=0, max_new_tokens=200, num_pages=4)


def call(name="add", **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


CASES = {
    "only text": ("The answer is <b>42</b>.", "The answer is <b>42</b>.", []),
    "one call": (call(a=1), "", [{"a": 1}]),
    "text and two calls": (f"I add.\n{call(a=1)}\n{call(a='é')}", "I add.", [{"a": 1}, {"a": "é"}]),
    "no closing tag": (call(a=2).removesuffix("</tool_call>"), "", [{"a": 2}]),
    "another tool": (call("rm", a=1), call("rm", a=1), []),
    "broken JSON": ("<tool_call>{a: 1}</tool_call> x", "<tool_call>{a: 1}</tool_call>x", []),
    "begun": ("2 <tool_", "2 <tool_", []),
    "deep": (f"<tool_call>{'[' * 5000}</tool_call>", f"<tool_call>{'[' * 5000}</tool_call>", []),
}


@pytest.mark.parametrize("case", CASES)
def test_random_cuts(case):
    text, content, calls = CASES[case]
    rng = random.Random(1)
    for _ in range(50):
        splitter, parts, at = ToolCalls(["add"]), [], 0
        while at < len(text):
            size = rng.choice([1, 2, 7, 40])
            parts += splitter.add(text[at : at + size])
            at += size
        parts += splitter.flush()
        found = [part for part in parts if isinstance(part, ToolCall)]
        assert "".join(part for part in parts if isinstance(part, str)) == content
        assert [json.loads(c.arguments) for c in found] == calls
        assert {c.name for c in found} <= {"add"} and len({c.id for c in found}) == len(found)


@pytest.mark.parametrize("parallel", [True, False])
def test_a_choice_with_calls(parallel):
    """Calls in the answer end it with tool_calls; calls in the thinking are text."""
    ids = encode(f"Hm.\n{call(a=1)}\n{call(a=2)}")
    rng = random.Random(2)
    thinking = encode(call(a=9))
    tokens = thinking + ids
    kinds = [int(TokenKind.THINKING)] * len(thinking) + [int(TokenKind.ANSWER)] * len(ids)
    choice = Choice(0, tokenizer(), LIMITS, "strict", tools=("add",), parallel_calls=parallel)
    deltas, at = [], 0
    while at < len(tokens) and not choice.done:
        end = min(len(tokens), at + rng.choice([1, 3, 9]))
        log = TokenLog(tokens[at:end], [False] * (end - at), kinds[at:end])
        done = Completion([], finish_reason="stop") if end == len(tokens) else None
        deltas += choice.add(StreamOutput(0, 0, log, done))
        at = end
    calls = [json.loads(d.call.arguments) for d in deltas if d.call]
    assert calls == ([{"a": 1}, {"a": 2}] if parallel else [{"a": 1}])
    assert "".join(d.text for d in deltas if d.channel == "content") == "Hm."
    assert "".join(d.text for d in deltas if d.channel == "reasoning") == call(a=9)
    assert choice.finish_reason == "tool_calls"


def test_a_template_without_tools_refuses_them(server):
    """The demo's template has no place for tools: 400, where others would forget them."""
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    body = {"messages": QUESTION, "tools": [tool]}
    reply = server.post(CHAT, body)
    assert reply.status_code == 400 and "tools" in reply.json()["error"]["message"]
    assert server.post(CHAT, body | {"tool_choice": "none", "max_tokens": 4}).status_code == 200
    for wrong in ({"tool_choice": "required"}, {"tools": [{"type": "function"}]}):
        assert server.post(CHAT, body | wrong).status_code == 400
