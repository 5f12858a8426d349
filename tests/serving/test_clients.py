"""openai's own client against the application."""

import asyncio

import pytest

from tests.serving.local import QUESTION, Local

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def ask(server):
    """Run a function of a client in the server's loop."""

    def run(use, **options):
        async def with_client():
            async with openai.AsyncOpenAI(
                base_url="http://test/v1", api_key="any", http_client=server.http(), **options
            ) as client:
                return await use(client)

        return server.run(with_client())

    return run


def test_chat_and_its_stream(ask):
    """Stream = whole, and budgets hold exactly, for 20 prompts and 5 budgets."""

    async def use(client):
        for i in range(20):
            for budget in (0, 1, 7, 20, 50):
                settings = {
                    "model": "tiny", "seed": i, "max_tokens": 60, "temperature": 1.2,
                    "messages": [{"role": "user", "content": f"Add {i} and 4."}],
                    "extra_body": {"thinking_token_budget": budget},
                }  # fmt: skip
                whole = await client.chat.completions.create(**settings)
                used = whole.usage
                assert used.completion_tokens <= 60
                assert used.completion_tokens_details.reasoning_tokens <= budget
                message = whole.choices[0].message
                stream = await client.chat.completions.create(
                    **settings, stream=True, stream_options={"include_usage": True}
                )
                content, thinking = "", ""
                async for event in stream:
                    for choice in event.choices:
                        content += choice.delta.content or ""
                        thinking += getattr(choice.delta, "reasoning_content", None) or ""
                assert content == message.content
                assert thinking == getattr(message, "reasoning_content", "")
                assert event.usage == used

    ask(use)


def test_models_and_completions(ask):
    async def use(client):
        models = [model.id async for model in client.models.list()]
        done = await client.completions.create(model="tiny", prompt="Add 1", max_tokens=5, n=2)
        return models, done

    models, done = ask(use)
    assert models == ["tiny"]
    assert len(done.choices) == 2 and done.usage.completion_tokens <= 10


@pytest.mark.parametrize(
    ("error", "settings"),
    [
        ("BadRequestError", {"extra_body": {"thinking_bugdet": 5}}),
        ("BadRequestError", {"extra_body": {"thinking_budget": 5, "reasoning_budget": 6}}),
        ("NotFoundError", {"model": "gpt-9"}),
    ],
)
def test_errors_have_the_clients_types(ask, error, settings):
    async def use(client):
        with pytest.raises(getattr(openai, error)) as caught:
            await client.chat.completions.create(
                **{"model": "tiny", "messages": QUESTION, **settings}
            )
        return caught.value

    assert ask(use).message


def test_a_wrong_key(tiny_engine):
    local = Local(tiny_engine, api_key=("right",))

    async def use():
        client = openai.AsyncOpenAI(
            base_url="http://test/v1", api_key="wrong", http_client=local.http()
        )
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()

    try:
        local.run(use())
    finally:
        local.close()


def test_retries_get_through_a_full_queue(tiny_engine):
    """40 at once where 4 run and 4 wait: some get 429 with Retry-After, all finish by retrying."""
    local = Local(tiny_engine, max_waiting=4)

    async def use():
        body = {"model": "tiny", "messages": QUESTION, "max_tokens": 8, "n": 2}
        async with local.http() as http:
            raw = [http.post("/v1/chat/completions", json=body) for _ in range(20)]
            replies = await asyncio.gather(*raw)
        refused = [reply for reply in replies if reply.status_code == 429]
        assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)
        assert {reply.status_code for reply in replies} == {200, 429}
        async with openai.AsyncOpenAI(
            base_url="http://test/v1", api_key="x", http_client=local.http(), max_retries=20
        ) as client:
            create = client.chat.completions.create
            done = await asyncio.gather(*(create(**body) for _ in range(12)))
        return [len(reply.choices) for reply in done]

    try:
        assert local.run(use()) == [2] * 12
        assert local.idle()
    finally:
        local.close()
