"""Every spelling of a setting means one thing, and nothing that looks like a budget is ignored."""

import itertools

import pytest

from jaxs1.decoding.params import ThinkingParams
from jaxs1.serving.config import EFFORTS, ServeConfig, ThinkingDefaults
from jaxs1.serving.errors import ApiError
from jaxs1.serving.thinking_fields import KNOWN, SPELLINGS, read

CONFIG = ServeConfig(thinking=ThinkingDefaults(max=100, max_answer_tokens=50))


def nested(path, value):
    """{"a": {"b": value}} for "a.b"."""
    group, dot, name = path.partition(".")
    return {group: {name: value}} if dot else {path: value}


def joined(*bodies):
    body = {}
    for other in bodies:
        for name, value in other.items():
            body[name] = body.get(name, {}) | value if isinstance(value, dict) else value
    return body


def refusal(body, config=CONFIG):
    with pytest.raises(ApiError) as caught:
        read(body, config)
    assert caught.value.status == 400 and "\n" not in caught.value.message
    return caught.value


def fields(params):
    return {name: getattr(params, name) for name in ThinkingParams.__dataclass_fields__}


@pytest.mark.parametrize("budget", [-1, 0, 1, 512])
def test_every_spelling_of_a_budget(budget):
    expected = fields(ThinkingParams(max=budget, max_answer_tokens=50))
    for path in SPELLINGS["budget"]:
        found = read(nested(path, budget), CONFIG)
        assert fields(found.params) == expected and found.explicit, path


@pytest.mark.parametrize("bad", ["512", True, 1.5, -2, [1], {}, 2**31])
def test_a_budget_is_an_integer(bad):
    for path in SPELLINGS["budget"]:
        error = refusal(nested(path, bad))
        assert error.param == path and "must be a number of tokens" in error.message


def test_two_spellings_that_disagree_are_refused_and_both_named():
    for one, other in itertools.combinations(SPELLINGS["budget"], 2):
        both = joined(nested(one, 5), nested(other, 6))
        message = refusal(both).message
        assert f"{one}=5" in message and f"{other}=6" in message
        assert read(joined(nested(one, 5), nested(other, 5)), CONFIG).params.max == 5


def test_efforts_are_tokens_and_a_number_wins():
    for path, (effort, tokens) in itertools.product(SPELLINGS["effort"], EFFORTS.items()):
        assert read(nested(path, effort), CONFIG).params.max == tokens
        both = joined(nested(path, effort), {"thinking_budget": 7})
        assert read(both, CONFIG).params.max == 7
    assert read({"reasoning_effort": "none"}, CONFIG).params.mode == "off"
    assert "one of none, minimal, low" in refusal({"reasoning_effort": "huge"}).message


OFF = [
    {"thinking": {"type": "disabled"}},
    {"enable_thinking": False},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"chat_template_kwargs": {"thinking": False}},
    {"reasoning": {"enabled": False}},
    {"think": False},
    {"thinking": {"mode": "off"}},
]


@pytest.mark.parametrize("off", OFF, ids=str)
def test_off(off):
    assert read(off, CONFIG).params.mode == "off"
    assert read(joined(off, {"reasoning_effort": "high"}), CONFIG).params.mode == "off"
    if "mode" not in off.get("thinking", {}):
        assert "disabled" in refusal(joined(off, {"thinking_budget": 9})).message


def test_on_is_the_default_and_budget_0_is_not_off():
    for body in ({}, {"think": True}, {"thinking": {"type": "adaptive"}}):
        found = read(body, CONFIG).params
        assert found.max == 100 and found.mode == "strict"
    assert read({"thinking_budget": 0}, CONFIG).params.mode == "strict"
    never = ServeConfig(thinking=ThinkingDefaults(mode="off"))
    assert read({}, never).params.mode == "off"


def test_the_other_settings():
    thinking = {
        "budget_tokens": 40, "min_tokens": 9, "num_waits": 2, "wait_strings": ["Hmm", "Wait"],
        "answer_prefix": "\nFinal Answer:", "min_answer_tokens": 3, "max_answer_tokens": 8,
        "mode": "s1_readme", "answer_temperature": 0.5, "details": True,
    }  # fmt: skip
    found = read({"thinking": thinking, "include_reasoning": False}, CONFIG)
    expected = ThinkingParams(
        max=40, min=9, num_waits=2, wait_strings=("Hmm", "Wait"), answer_prefix="\nFinal Answer:",
        min_answer_tokens=3, max_answer_tokens=8, mode="s1_readme",
    )  # fmt: skip
    assert fields(found.params) == fields(expected)
    assert found.answer_temperature == 0.5 and found.details and not found.include
    assert not read({"reasoning": {"exclude": True}}, CONFIG).include
    assert not read({"separate_reasoning": False}, CONFIG).separate
    assert "must not exceed" in refusal({"thinking": {"budget_tokens": 4, "min_tokens": 5}}).message


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("thinking_token_budgt", "thinking_token_budget"),
        ("max_thinking_tokens", None),
        ("reasoning.budget_tokens", None),
        ("thinking.budget_token", "thinking.budget_tokens"),
        ("thinking.anything", None),
        ("chat_template_kwargs.thinking_buget", "chat_template_kwargs.thinking_budget"),
        ("Budget", None),
    ],
)
def test_what_looks_like_a_setting_is_never_ignored(path, near):
    error = refusal(nested(path, 512))
    assert error.param == path and "no such field; did you mean" in error.message
    assert near is None or near in error.message


@pytest.mark.parametrize(
    "body", [{"thinking": 3}, {"reasoning": "high"}, {"nvext": []}, {"custom_params": True}]
)
def test_objects_are_objects(body):
    assert "must be an object" in refusal(body).message


def test_messages_and_harmless_fields_are_not_searched():
    messages = [{"role": "assistant", "content": "x", "reasoning": "y", "thinking": "z"}]
    read({"messages": messages, "nvext": {"other": 1}, "user": "a"}, CONFIG)


def test_ceiling():
    config = ServeConfig(thinking=ThinkingDefaults(max=100), ceiling=60)
    for body, note in [
        ({}, False), ({"thinking_budget": 61}, True), ({"thinking_budget": -1}, True),
        ({"reasoning_effort": "high"}, True), ({"thinking_budget": 60}, False),
    ]:  # fmt: skip
        found = read(body, config)
        assert found.params.max == 60
        assert bool(found.note) == note, body
    assert read({"thinking_budget": 3}, config).params.max == 3


def test_no_value_raises_anything_but_a_refusal():
    values = [None, True, 0, 1.5, "x", "low", [], ["a"], [1], {}, {"a": 1}, "x" * 300, -5, 10**30]
    refused = 0
    for path, value in itertools.product(KNOWN, values):
        try:
            read(nested(path, value), CONFIG)
        except ApiError:
            refused += 1
    assert len(KNOWN) * len(values) > refused > len(KNOWN)
