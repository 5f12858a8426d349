"""pydantic-ai: thoughts, structured output through a required tool, thoughts that are sent back."""

import pytest

pytest.importorskip("pydantic_ai")
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import TextPart, ThinkingPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class Sum(BaseModel):
    a: int


@pytest.fixture
def model(url):
    return OpenAIChatModel("fixed", provider=OpenAIProvider(base_url=f"{url}/v1", api_key="none"))


def parts_of(result):
    return [part for message in result.all_messages() for part in message.parts]


def test_thinking_and_a_second_turn(model):
    agent = Agent(model)
    settings = {"extra_body": {"thinking_token_budget": 40}, "max_tokens": 100}
    first = agent.run_sync("What is it?", model_settings=settings)
    assert first.output == "42"
    assert [p.content for p in parts_of(first) if isinstance(p, ThinkingPart)] == ["First"]
    history = first.all_messages()
    second = agent.run_sync("And now?", message_history=history, model_settings=settings)
    texts = [p.content for p in parts_of(second) if isinstance(p, TextPart)]
    assert texts == ["42", "42"]


def test_structured_output(model):
    """One required tool: the controller begins its call, even behind a thought that was cut."""
    agent = Agent(model, output_type=Sum)
    for budget in (0, 1, 40):
        settings = {"extra_body": {"thinking_token_budget": budget}, "max_tokens": 200}
        assert agent.run_sync("Add.", model_settings=settings).output == Sum(a=1)


def test_a_stream(model):
    agent = Agent(model)

    async def read():
        async with agent.run_stream("What is it?") as result:
            return "".join([text async for text in result.stream_text(delta=True)])

    import asyncio

    assert asyncio.run(read()) == "42"
