"""langchain-openai: content, tokens of the thinking, bound tools, log-probabilities."""

import pytest

pytest.importorskip("langchain_openai")
from langchain_openai import ChatOpenAI


def chat(url, **options):
    return ChatOpenAI(model="fixed", base_url=f"{url}/v1", api_key="none", **options)


def test_content_and_tokens_of_the_thinking(url):
    reply = chat(url, extra_body={"thinking_token_budget": 40}).invoke("What is it?")
    assert reply.content == "42"
    assert reply.usage_metadata["output_token_details"]["reasoning"] == 1
    assert "".join(part.content for part in chat(url).stream("What is it?")) == "42"


def test_a_bound_tool(url):
    def add(a: int) -> int:
        """Add."""
        return a + 1

    model = chat(url, max_tokens=200).bind_tools([add], tool_choice="add")
    (call,) = model.invoke("Add.").tool_calls
    assert (call["name"], call["args"]) == ("add", {"a": 1})


def test_log_probabilities(url):
    model = chat(url, temperature=0).bind(logprobs=True, top_logprobs=1)
    reply = model.invoke("What is it?")
    (entry,) = reply.response_metadata["logprobs"]["content"]
    assert entry["token"] == "42" and entry["top_logprobs"][0]["logprob"] == entry["logprob"]
