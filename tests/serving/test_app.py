"""The API in process: shapes, budgets, streams equal to whole replies, errors."""

import asyncio
import itertools
import json
import random
import re

import pytest

from jaxs1.decoding.params import Request, SamplingParams, ThinkingParams
from jaxs1.decoding.prompt import prompt_ids
from jaxs1.serving.protocol import HARMLESS, ChatBody, CompletionBody
from jaxs1.serving.thinking_fields import KNOWN
from tests.conftest import ROOT
from tests.decoding.engines import complete_all, encode, tokenizer
from tests.serving.local import CHAT, QUESTION, Local, joined, parse_events

PATHS = [CHAT, "/v1/completions"]


def choice_of(reply):
    (choice,) = reply["choices"]
    return choice


def text_of(choice):
    return choice["message"]["content"], choice["message"].get("reasoning", "")


def test_a_reply_is_the_engines_completion(server):
    """Same ids, same text, same counts as `Engine.run` on the same request."""
    thinking = ThinkingParams(max=20, num_waits=1, max_answer_tokens=12, min_answer_tokens=4)
    body = {
        "thinking": {"budget_tokens": 20, "num_waits": 1, "max_answer_tokens": 12},
        "temperature": 1.1, "top_p": 0.9, "top_k": 50, "seed": 7, "n": 2,
    }  # fmt: skip
    reply = server.chat(**body)
    ids = prompt_ids(QUESTION, thinking, tokenizer())
    sampling = SamplingParams(temperature=1.1, top_p=0.9, top_k=50)
    request = Request(ids, thinking, sampling, n=2, seed=7)
    (expected,) = server.call(lambda engine: complete_all(engine, [request]))
    assert reply["object"] == "chat.completion" and reply["model"] == "tiny"
    for choice, done in zip(reply["choices"], expected, strict=True):
        assert text_of(choice) == (done.answer, done.thinking)
        assert choice["message"].get("reasoning_content", "") == done.thinking
        assert choice["finish_reason"] == done.finish_reason and choice["seed"] == 7
        summary = choice["thinking"]
        assert summary["budget"] == 20 and summary["tokens"] == done.usage["thinking_tokens"]
        assert summary["forced_tokens"] == done.usage["forced_tokens"]
        assert summary["ended_by"] == done.thinking_ended_by
        assert summary["waits"] == sum(e.kind == "wait" for e in done.interventions)
    usage = reply["usage"]
    assert usage["prompt_tokens"] == expected[0].usage["prompt_tokens"]
    total = sum(done.usage["completion_tokens"] for done in expected)
    assert usage["completion_tokens"] == total
    assert usage["total_tokens"] == usage["prompt_tokens"] + total
    thinking_tokens = sum(done.usage["thinking_tokens"] for done in expected)
    assert usage["completion_tokens_details"]["reasoning_tokens"] == thinking_tokens


def test_streams_are_whole_replies_and_budgets_are_exact(server):
    rng = random.Random(3)
    seen = {"waits": 0, "budget": 0, "stop": 0}
    for i, budget in itertools.product(range(5), (0, 1, 8, 30, -1)):
        waits = rng.choice([0, 2])
        body = {
            "messages": [{"role": "user", "content": f"Add {i} and {rng.randrange(99)}."}],
            "thinking": {"budget_tokens": budget, "num_waits": waits},
            "seed": i, "max_tokens": rng.choice([16, 48]), "temperature": 1.3,
            "stop": rng.choice([None, ["e", "12"], "\n"]),
        }  # fmt: skip
        whole = choice_of(reply := server.chat(**body))
        events = server.events(**body, stream_options={"include_usage": True})
        texts = joined(events)
        content, thinking = text_of(whole)
        assert texts["content"] == content
        assert texts.get("reasoning", "") == thinking == texts.get("reasoning_content", "")
        last = events[-2]["choices"][0]
        assert {name: last[name] for name in ("finish_reason", "stop_reason", "thinking")} == {
            name: whole[name] for name in ("finish_reason", "stop_reason", "thinking")
        }
        assert events[-1]["choices"] == [] and events[-1]["usage"] == reply["usage"]
        used = reply["usage"]
        assert used["completion_tokens"] <= body["max_tokens"]
        tokens = used["completion_tokens_details"]["reasoning_tokens"]
        assert tokens == whole["thinking"]["tokens"]
        assert budget < 0 or tokens <= budget
        assert whole["finish_reason"] != "length" or content or used["completion_tokens"] > tokens
        seen["waits"] += whole["thinking"]["waits"]
        seen["budget"] += whole["thinking"]["ended_by"] in ("budget", "max_tokens")
        seen["stop"] += whole["stop_reason"] is not None
    assert min(seen.values()) > 0, seen


def test_stop_strings_act_on_the_answer_only(server):
    """The stop occurs in the thinking, which is not cut; the answer ends before it."""
    for seed in range(20):
        free = choice_of(server.chat(seed=seed, thinking_budget=30, max_tokens=60))
        content, thinking = text_of(free)
        both = [c for c in content if c in thinking and c.isalpha()]
        if not both:
            continue
        stop = both[0]
        cut = choice_of(server.chat(seed=seed, thinking_budget=30, max_tokens=60, stop=stop))
        assert text_of(cut)[1] == thinking and stop in thinking
        assert text_of(cut)[0] == content.split(stop)[0].strip()
        assert cut["finish_reason"] == "stop" and cut["stop_reason"] == stop
        return
    pytest.fail("no answer shared a letter with its thinking")


def test_forced_texts_are_pieces_of_their_own(server):
    body = {"thinking": {"budget_tokens": 30, "num_waits": 3, "wait_strings": ["Hmm"]}}
    for seed in range(20):
        events = server.events(**body, seed=seed, temperature=1.3)
        deltas = [c["delta"] for event in events for c in event["choices"]]
        forced = [d["reasoning"] for d in deltas if d.get("forced") == "wait"]
        waits = events[-1]["choices"][0]["thinking"]["waits"]
        assert "".join(forced).count("Hmm") == waits
        if waits:
            return
    pytest.fail("no thought was extended")


def test_details_show_the_close(server):
    details = {"budget_tokens": 3, "min_tokens": 3, "details": True}
    deltas = [c["delta"] for event in server.events(thinking=details) for c in event["choices"]]
    close = "".join(d.get("close", "") for d in deltas)
    assert close.strip() == "<|im_start|>answer"


def test_clients_that_know_content_only(server):
    body = {"seed": 3, "thinking_budget": 12, "max_tokens": 40}
    content, thinking = text_of(choice_of(server.chat(**body)))
    assert thinking
    merged = choice_of(server.chat(**body, separate_reasoning=False))
    expected = f"<think>\n{thinking}\n</think>\n\n{content}" if content else f"<think>\n{thinking}"
    assert merged["message"] == {"role": "assistant", "content": expected}
    hidden = choice_of(server.chat(**body, include_reasoning=False))
    assert hidden["message"] == {"role": "assistant", "content": content}
    texts = joined(server.events(**body, include_reasoning=False))
    assert texts == {"content": content}


def test_completions(server):
    body = {"prompt": ["Add 1 and 2.", "What"], "max_tokens": 9, "n": 2, "seed": 5}
    reply = server.post("/v1/completions", body).json()
    assert [c["index"] for c in reply["choices"]] == [0, 1, 2, 3]
    off = ThinkingParams(mode="off", max_answer_tokens=32, min_answer_tokens=4)
    requests = [
        Request(encode(p), off, SamplingParams(temperature=1.0), 2, 5, 9) for p in body["prompt"]
    ]
    completed = server.call(lambda engine: complete_all(engine, requests))
    expected = [done for both in completed for done in both]
    for choice, done in zip(reply["choices"], expected, strict=True):
        assert choice["text"] == tokenizer().decode(done.answer_ids, skip_special_tokens=True)
        assert choice["thinking"]["ended_by"] == "none"
    ids = server.post("/v1/completions", body | {"prompt": [encode(p) for p in body["prompt"]]})
    assert [c["text"] for c in ids.json()["choices"]] == [c["text"] for c in reply["choices"]]
    events = server.events("/v1/completions", **body)
    for choice in reply["choices"]:
        pieces = [c["text"] for e in events for c in e["choices"] if c["index"] == choice["index"]]
        assert "".join(pieces) == choice["text"]
    thinking = server.post("/v1/completions", body | {"thinking_budget": 5}).json()
    assert thinking["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


def test_an_unlucky_seed_is_drawn_and_returned(server):
    first, second = (choice_of(server.chat(max_tokens=20)) for _ in range(2))
    assert first["seed"] != second["seed"]
    again = choice_of(server.chat(max_tokens=20, seed=first["seed"]))
    assert again["message"] == first["message"]


def test_tokenize_and_detokenize(server):
    text = "What is 12 + 30?"
    reply = server.post("/tokenize", {"prompt": text, "add_special_tokens": False}).json()
    assert reply["tokens"] == encode(text) and reply["count"] == len(encode(text))
    assert reply["max_model_len"] == server.engine.context
    assert server.post("/detokenize", {"tokens": reply["tokens"]}).json() == {"prompt": text}
    ids = prompt_ids(QUESTION, ThinkingParams(), tokenizer())
    assert server.post("/tokenize", {"messages": QUESTION}).json()["tokens"] == ids
    assert server.get("/tokenizer_info").json()["eos_token"] == tokenizer().eos_token


def test_models_health_version_and_description(server):
    (model,) = server.get("/v1/models").json()["data"]
    assert model["id"] == "tiny" and model["thinking"]["default"] == 64
    assert server.get("/v1/models/tiny").json() == model
    assert server.get("/health").json() == {"status": "ready"}
    assert server.get("/ping").status_code == server.get("/live").status_code == 200
    assert server.get("/version").json()["version"]
    description = server.get("/openapi.json").json()
    assert "ChatBody" in description["components"]["schemas"]
    assert "422" not in json.dumps(description)


def test_a_key_where_one_is_set(tiny_engine):
    local = Local(tiny_engine, api_key=("secret", "other"))
    try:
        body = {"messages": QUESTION, "max_tokens": 2}
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}):
            reply = local.post(CHAT, body, headers=headers)
            assert reply.status_code == 401
            assert reply.json()["error"]["type"] == "authentication_error"
            assert local.get("/metrics", headers=headers).status_code == 401
        for headers in ({"authorization": "bearer secret"}, {"x-api-key": "other"}):
            assert local.post(CHAT, body, headers=headers).status_code == 200
        assert local.get("/health").status_code == 200
    finally:
        local.close()


def test_metrics(server):
    def values():
        lines = server.get("/metrics").text.splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
        return {name: float(value) for name, value in pairs}

    before = values()
    reply = server.chat(thinking_budget=9, max_tokens=40, seed=1)
    after = values()
    label = '{model_name="tiny"}'
    tokens = reply["usage"]["completion_tokens_details"]["reasoning_tokens"]
    thinking = f"jaxs1:thinking_tokens_sum{label}"
    assert after[thinking] - before[thinking] == tokens
    prompts = f"vllm:prompt_tokens_total{label}"
    assert after[prompts] - before.get(prompts, 0) == reply["usage"]["prompt_tokens"]
    assert after[f"vllm:num_requests_running{label}"] == 0
    assert after[f"vllm:kv_cache_usage_perc{label}"] == 0


async def stream_raw(server, body, events):
    """Begin a stream by hand and leave after some events; returns what came."""
    got, left = [], asyncio.Event()
    sent = False

    async def receive():
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        got.append(message)
        if len(got) > events:
            left.set()

    scope = {
        "type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode(), "scheme": "http",
        "query_string": b"", "headers": [(b"content-type", b"application/json")],
        "http_version": "1.1", "asgi": {"version": "3.0"}, "server": ("test", 80),
        "client": ("test", 1), "root_path": "",
    }  # fmt: skip
    if not events:
        asyncio.get_running_loop().call_later(0.05, left.set)
    await server.app(scope, receive, send)
    return got


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_rows_and_pages(server, stream):
    body = {"messages": QUESTION, "thinking": {"budget_tokens": 190, "min_tokens": 180}, "n": 3,
            "stream": stream}  # fmt: skip

    async def all_leave():
        await asyncio.gather(*(stream_raw(server, body, 3 if stream else 0) for _ in range(5)))
        for _ in range(3000):
            if server.idle():
                return True
            await asyncio.sleep(0.02)
        return False

    assert server.run(all_leave())
    assert server.chat(max_tokens=8)["choices"]


def test_answer_now_and_cancel(server):
    """A thought of a long minimum is closed by hand; a second request is cancelled."""
    body = {"messages": QUESTION, "max_tokens": 200, "stream": True, "request_id": "mine",
            "thinking": {"budget_tokens": 180, "min_tokens": 170}}  # fmt: skip

    async def control(action):
        async with server.http() as client:
            sending = asyncio.create_task(client.post(CHAT, json=body))
            while not (running := server.service.running.get("chatcmpl-mine")):
                await asyncio.sleep(0.002)
            while running._newest is None:
                await asyncio.sleep(0.002)
            told = {"id": "chatcmpl-mine", "action": action}
            reply = await client.post(f"{CHAT}/control", json=told)
            return reply.json(), (await sending).content

    told, data = server.run(control("reasoning_end"))
    assert told["success"]
    end = parse_events(data)[-1]["choices"][0]
    assert end["thinking"]["ended_by"] == "client" and end["thinking"]["tokens"] < 170
    told, data = server.run(control("cancel"))
    assert told["success"] and b'"code": "cancelled"' in data
    gone = server.post(f"{CHAT}/control", {"id": "chatcmpl-mine", "action": "cancel"}).json()
    assert not gone["success"] and "no such request" in gone["message"]


def test_the_request_of_the_docs(server):
    page = (ROOT / "docs" / "serving.md").read_text()
    body = json.loads(re.search(r"curl \S+/v1/chat/completions .* -d '(\{.*?\})'\n", page, re.S)[1])
    assert choice_of(server.chat(**body))["thinking"]["budget"] <= 200


def test_fields_of_the_docs_are_those_of_the_table():
    page = (ROOT / "docs" / "serving.md").read_text()
    table = page.split("## Fields of a request")[1].split("A number wins")[0]
    named = set(re.findall(r"`([a-z_]+(?:\.[a-z_]+)?)(?:: false)?`", table))
    assert named == set(KNOWN) - {"thinking.cue"} | {"content"}


def test_honoured_and_refused_fields_of_the_docs(server):
    """What the page calls honoured is in the schemas; what it calls refused is refused."""
    page = (ROOT / "docs" / "serving.md").read_text()
    honoured, _, rest = page.split("Honoured as in")[1].partition("Refused with status 400")
    refused = rest.partition("Other fields")[0].replace("`min_tokens` with `stop`", "")
    known = {*ChatBody.model_fields, *CompletionBody.model_fields, *HARMLESS}
    named = set(re.findall(r"`(\w+)`", honoured))
    assert named <= known
    assert known - named <= {*HARMLESS, "prompt"}
    for name in re.findall(r"`(\w+)`", refused):
        value = {"type": "json_object"} if name == "response_format" else 5
        reply = server.post(CHAT, {"messages": QUESTION, name: value})
        assert reply.status_code == 400 and reply.json()["error"]["param"] == name
