"""litellm, and through it what OpenHands and aider send."""

import pytest

litellm = pytest.importorskip("litellm")

#: OpenHands' options for a model without native tools: mocked calls end at this stop.
OPENHANDS = {"stop": ["</function"], "top_k": 20, "top_p": 0.9, "seed": 1, "temperature": 0.0,
             "max_completion_tokens": 300}  # fmt: skip
SYSTEM = "You are a careful agent who works in a shell. Rule number " + " ".join(
    f"{i}: think first." for i in range(1150)
)


def ask(url, messages, **options):
    return litellm.completion(
        model="hosted_vllm/fixed", api_base=f"{url}/v1", api_key="none", messages=messages,
        **options,
    )  # fmt: skip


def user(content):
    return {"role": "user", "content": content}


def test_thinking(url):
    reply = ask(url, [user("Hi")], extra_body={"thinking_token_budget": 40})
    message = reply.choices[0].message
    assert (message.content, message.reasoning_content) == ("42", "First")
    stream = ask(url, [user("Hi")], stream=True)
    deltas = [chunk.choices[0].delta for chunk in stream if chunk.choices]
    assert "".join(d.content or "" for d in deltas) == "42"
    assert "".join(getattr(d, "reasoning_content", None) or "" for d in deltas) == "First"


def test_an_agents_system_prompt_is_prefilled_once(url):
    """20,000 characters twice: the second request finds all full pages but the last."""
    messages = [{"role": "system", "content": SYSTEM}, user("List the files.")]
    first = ask(url, messages, **OPENHANDS)
    assert len(SYSTEM) > 20_000 and first.choices[0].message.content == "42"
    turn = {"role": "assistant", "content": "42", "reasoning_content": "First"}
    second = ask(url, [*messages, turn, user("Go on.")], **OPENHANDS)
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert cached > 0.95 * first.usage.prompt_tokens
    assert second.choices[0].finish_reason == "stop"


def test_a_full_context_is_recognised(url):
    with pytest.raises(litellm.ContextWindowExceededError):
        ask(url, [user("word " * 30_000)], **OPENHANDS)


def test_a_named_tool(url):
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    choice = {"type": "function", "function": {"name": "add"}}
    reply = ask(url, [user("Add.")], tools=[tool], tool_choice=choice, max_tokens=200)
    (call,) = reply.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("add", '{"a": 1}')
