"""Requests that are refused: the status, and a message that names the field."""

import json
import random

import pytest

from tests.serving.local import CHAT, QUESTION

PATHS = [CHAT, "/v1/completions"]


BAD = {
    "missing messages": ({"messages": None}, "messages"),
    "no message": ({"messages": []}, "messages"),
    "role": ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0"),
    "content": ({"messages": [{"role": "user", "content": 5}]}, "messages.0"),
    "picture": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0"),
    "temperature": ({"temperature": "hot"}, "temperature"),
    "negative": ({"max_tokens": -5}, "max_tokens"),
    "true is no number": ({"max_tokens": True}, "max_tokens"),
    "n": ({"n": 1000}, "n"),
    "stops": ({"stop": ["x"] * 17}, "stop"),
    "two lengths": ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
    "logprobs": ({"logprobs": 1}, "logprobs"),
    "penalty": ({"presence_penalty": 3}, "presence_penalty"),
    "short": ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
    "short with a stop": ({"min_tokens": 9, "stop": "x"}, "min_tokens"),
    "bias": ({"logit_bias": {"5": 101}}, "logit_bias"),
    "biased id": ({"logit_bias": {"99999": 1}}, "sampling.logit_bias"),
    "biases": ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias"),
    "schema": ({"response_format": {"type": "json_object"}}, "response_format"),
    "template": ({"chat_template": "{{ 1 }}"}, "chat_template"),
    "min": ({"thinking": {"min_tokens": 9, "budget_tokens": 3}}, "thinking.min"),
    "typo": ({"thinking_bugdet": 3}, "thinking_bugdet"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_requests(server, name):
    body, param = BAD[name]
    reply = server.post(CHAT, {"messages": QUESTION, **body})
    error = reply.json()["error"]
    assert reply.status_code == 400 and set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param and "\n" not in error["message"], error
    assert error["type"] == "invalid_request_error"


def test_a_schema_is_refused_with_what_to_do_instead(server):
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    error = server.post(CHAT, {"messages": QUESTION, "response_format": schema}).json()["error"]
    assert "is not supported; describe the JSON" in error["message"]
    assert "tool_choice" in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"1", b"\xff\xfe", b'{"a": NaN}', b'{"a": "\\ud800"}', b"[" * 100_000,
        b'{"a":' * 70 + b"1" + b"}" * 70, b'{"temperature": 1e400}', b"9" * 5000,
        b'{"messages": 1e5}', b'{"seed": 1e30}', b'{"prompt": []}', b'{"messages": [[]]}',
        b'{"messages": [{}]}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", [*PATHS, "/tokenize", "/detokenize", f"{CHAT}/control"])
def test_malformed_bodies(server, path, body):
    reply = server.post(path, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400, reply.text
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_random_mutations_of_a_body_give_nothing_but_4xx(server):
    rng = random.Random(6)
    good = json.dumps({"messages": QUESTION, "max_tokens": 2, "thinking": {"budget_tokens": 1},
                       "stop": ["a"], "n": 1, "stream": False}).encode()  # fmt: skip

    async def send(client, body):
        reply = await client.post(CHAT, content=body, headers={"content-type": "application/json"})
        assert reply.status_code in (200, 400, 404), (body, reply.text)
        return reply.status_code

    async def all_of_them():
        bodies = []
        for _ in range(400):
            body = bytearray(good)
            for _ in range(rng.randint(1, 4)):
                at = rng.randrange(len(body))
                body[at : at + rng.randrange(4)] = rng.choice(
                    [b"", b"\x00", b'"', b"}", b"9", b"[", b"\xc3"]
                )
            bodies.append(bytes(body))
        async with server.http() as client:
            return [await send(client, body) for body in bodies]

    statuses = server.run(all_of_them())
    assert statuses.count(400) > 200


def test_other_statuses(server):
    long = [{"role": "user", "content": "What " * 300}]
    reply = server.post(CHAT, {"messages": long})
    assert reply.status_code == 400 and reply.json()["error"]["code"] == "context_length_exceeded"
    # litellm recognises a full context by this text
    assert "This model's maximum context length is 256 tokens" in reply.json()["error"]["message"]
    huge = [{"role": "user", "content": "x" * 100_000}]
    assert (
        server.post(CHAT, {"messages": huge}).json()["error"]["code"] == "context_length_exceeded"
    )
    assert server.post(CHAT, {"messages": QUESTION, "model": "gpt-9"}).status_code == 404
    assert server.get("/v1/models/gpt-9").json()["error"]["code"] == "model_not_found"
    assert server.get("/nothing").status_code == 404
    assert server.get("/nothing").json()["error"]["message"].startswith("/nothing")
    assert server.get(CHAT).status_code == 405 and server.get(CHAT).headers["allow"] == "POST"
    text = {"content-type": "text/plain"}
    assert server.post(CHAT, content=b"{}", headers=text).status_code == 415
    big = b'{"messages": "' + b"x" * (5 << 20) + b'"}'
    json_type = {"content-type": "application/json"}
    assert server.post(CHAT, content=big, headers=json_type).status_code == 413
    body = {"messages": QUESTION, "max_tokens": 4, "frobnicate": 1, "user": "u"}
    template = {"enable_thinking": True, "language": "en"}  # the first is a setting of thinking
    ignored = server.post(CHAT, body | {"chat_template_kwargs": template})
    assert ignored.headers["x-ignored-fields"] == "frobnicate,chat_template_kwargs.language"
    named = server.post(CHAT, {}, headers={"x-request-id": "abc-1"})
    assert named.headers["x-request-id"] == "abc-1"
