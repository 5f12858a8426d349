"""instructor: a named tool, whose arguments become an object of a class."""

import pytest

instructor = pytest.importorskip("instructor")
openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")


@pytest.mark.parametrize("budget", [0, 1, 40])
def test_an_object_of_a_class(url, budget):
    class add(pydantic.BaseModel):
        a: int

    client = instructor.from_openai(openai.OpenAI(base_url=f"{url}/v1", api_key="none"))
    found, raw = client.chat.completions.create_with_completion(
        model="fixed", response_model=add, messages=[{"role": "user", "content": "Add."}],
        max_tokens=200, extra_body={"thinking_token_budget": budget},
    )  # fmt: skip
    assert found.model_dump() == {"a": 1}
    assert raw.usage.completion_tokens_details.reasoning_tokens == min(budget, 1)
