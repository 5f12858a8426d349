"""Calls are found in an answer whatever its cuts; what is no call stays text."""

import json
import random

import pytest

from jaxs1.data.tokenizer import load_tokenizer
from jaxs1.decoding.budget import TokenKind
from jaxs1.decoding.controls import SequenceLimits
from jaxs1.decoding.outputs import Completion, StreamOutput, TokenLog
from jaxs1.serving.choice import Choice
from jaxs1.serving.config import SamplingDefaults
from jaxs1.serving.tool_calls import CLOSE, OPEN, ToolCall, ToolCalls
from tests.data.templates import folder_with
from tests.decoding.engines import encode, open_tiny, tokenizer
from tests.decoding.test_chain import write_chain
from tests.serving.local import CHAT, LIMITS, QUESTION, Local

NO_THINKING = SequenceLimits(budget=0, max_new_tokens=200, num_pages=4)


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
    choice = Choice(0, tokenizer(), NO_THINKING, "strict", tools=("add",), parallel_calls=parallel)
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


#: Tokens of a call; the chain model writes each of them behind the one before.
PIECES = ("First", OPEN, '\n{"name": "', "add", '", "arguments":', ' {"a": 1}}\n', CLOSE)


def named(name):
    return {"type": "function", "function": {"name": name, "parameters": {}}}


TOOLS = [named("add"), named("sub")]
NAMED = {"type": "function", "function": {"name": "add"}}


@pytest.fixture(scope="module")
def caller(tmp_path_factory):
    """A model that thinks "First" and calls a tool inside its thought, and the tokens of that."""
    tokens = load_tokenizer(folder_with("qwen3", *PIECES))
    chain = tokens("<think>\n" + "".join(PIECES), add_special_tokens=False)["input_ids"][1:]
    assert len(chain) == 1 + len(PIECES)
    folder = tmp_path_factory.mktemp("caller")
    eos = tokens.eos_token_id
    write_chain(folder, "qwen3", [*chain, eos], eos=[eos], pieces=PIECES)
    local = Local(open_tiny(folder, **LIMITS), sampling=SamplingDefaults(temperature=0.0))
    yield local
    local.close()
    assert local.idle()


FORCED = {
    "auto": (None, OPEN),
    "required": ("required", OPEN + '\n{"name": "'),
    "named": (NAMED, OPEN + '\n{"name": "add", "arguments":'),
}


@pytest.mark.parametrize("budget", [50, 1, 0, None])
@pytest.mark.parametrize("choice", FORCED)
def test_a_thought_ends_where_a_tool_is_called(caller, choice, budget):
    """The model calls inside its thought, or the controller begins the call: one call, no text."""
    value, begun = FORCED[choice]
    off = {"thinking": {"type": "disabled"}} if budget is None else {"thinking_budget": budget}
    reply = caller.chat(tools=TOOLS, tool_choice=value, max_tokens=60, **off)
    (done,) = reply["choices"]
    if choice == "auto" and budget in (0, 1):  # the thought ends before the call
        assert not done["message"].get("tool_calls") and done["finish_reason"] != "tool_calls"
        return
    said = "First" if (choice, budget) == ("auto", None) else ""
    assert done["finish_reason"] == "tool_calls" and done["message"]["content"] == (said or None)
    (call,) = done["message"]["tool_calls"]
    assert call["function"] == {"name": "add", "arguments": '{"a": 1}'}
    assert done["message"].get("reasoning", "") == ("First" if budget else "")
    ended_by = {50: "model", None: "none"}.get(budget, "budget")
    assert done["thinking"]["ended_by"] == ended_by
    close = {50: 1, 1: 2, 0: 1, None: 0}[budget]  # with the line break in front of it
    begun = "" if said else begun
    assert done["thinking"]["forced_tokens"] == close + len(encoded(caller, begun))
    events = caller.events(tools=TOOLS, tool_choice=value, max_tokens=60, **off)
    deltas = [c["delta"] for event in events for c in event["choices"]]
    (streamed,) = [d["tool_calls"][0] for d in deltas if "tool_calls" in d]
    assert streamed["function"] == call["function"]
    assert "".join(d.get("content", "") for d in deltas) == said


def encoded(server, text):
    return server.engine.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_without_tools_a_call_is_a_part_of_the_thought(caller):
    (done,) = caller.chat(max_tokens=60)["choices"]
    assert done["message"]["reasoning"].startswith("First<tool_call>")


def test_a_named_call_comes_even_if_it_is_cut_short(caller):
    """OpenAI's clients find no call otherwise, and cannot even ask again."""
    body = {"tools": TOOLS, "tool_choice": NAMED, "thinking_budget": 0}
    (done,) = caller.chat(**body, max_tokens=5)["choices"]
    assert done["finish_reason"] == "length"
    (call,) = done["message"]["tool_calls"]
    assert call["function"] == {"name": "add", "arguments": ""}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "rm"}}}, "no such tool"),
        ({"tool_choice": {"type": "allowed_tools"}}, "must be none, auto, required"),
        ({"tool_choice": "any"}, "must be none, auto, required"),
        ({"tool_choice": "required", "tools": []}, "there are no tools"),
        ({"tool_choice": NAMED, "thinking": {"mode": "s1_readme"}}, "set thinking.mode=strict"),
        ({"tools": [named("x" * 90)], "tool_choice": "required"}, "tool's call"),
    ],
)
def test_wrong_choices(caller, wrong, message):
    reply = caller.post(CHAT, {"messages": QUESTION, "tools": TOOLS, **wrong})
    assert reply.status_code == 400 and message in reply.json()["error"]["message"]
