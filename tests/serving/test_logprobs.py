"""Log-probabilities on the wire are the engine's, streamed or not, echoed or generated."""

import pytest

from tests.decoding.engines import encode, tokenizer
from tests.serving.local import CHAT, QUESTION

TEXT = "/v1/completions"


def decoded(token):
    return tokenizer().decode([token])


def scored(server, prompt, following):
    (scores,) = server.call(lambda engine: engine.score([(prompt, following)]))
    return scores


@pytest.mark.parametrize("alternatives", [0, 1])
def test_completions(server, alternatives):
    """Own tokens and the prompt's, whose first one has no probability; the last may be a stop."""
    prompt = encode("What is 12 + 30?")
    body = {"prompt": prompt, "max_tokens": 9, "seed": 4, "logprobs": alternatives}
    plain = server.post(TEXT, body).json()["choices"][0]
    echoed = server.post(TEXT, body | {"echo": True}).json()["choices"][0]
    assert echoed["text"] == "What is 12 + 30?" + plain["text"]
    own, all_of_them = plain["logprobs"], echoed["logprobs"]
    assert all_of_them["tokens"] == [*map(decoded, prompt), *own["tokens"]]
    scores = scored(server, prompt[:1], prompt[1:])
    logprobs = [*scores.logprobs, *own["token_logprobs"]]
    assert all_of_them["token_logprobs"][0] is None
    assert all_of_them["token_logprobs"][1:] == pytest.approx(logprobs, abs=1e-4)
    joined = "".join(all_of_them["tokens"])
    for offset, token in zip(all_of_them["text_offset"], all_of_them["tokens"], strict=True):
        assert joined[offset:].startswith(token)
    top = all_of_them["top_logprobs"]
    if not alternatives:
        assert top is None
        return
    assert top[0] is None and len(top) == 1 + len(logprobs)
    for best, logprob, entry in zip(scores.best_ids, scores.best_logprobs, top[1:], strict=False):
        assert entry[decoded(best)] == pytest.approx(logprob, abs=1e-4)
        assert max(entry.values()) == entry[decoded(best)]
    events = server.events(TEXT, **body)
    parts = [c["logprobs"] for event in events for c in event["choices"]]
    for name, column in own.items():
        assert [x for part in parts for x in part[name]] == column


def test_greedy_tokens_have_the_highest_probability(server):
    """What lm-evaluation-harness looks at: the highest of `top_logprobs` is the token's own."""
    body = {"prompt": encode("Add"), "max_tokens": 9, "temperature": 0, "logprobs": 1}
    own = server.post(TEXT, body).json()["choices"][0]["logprobs"]
    for logprob, top in zip(own["token_logprobs"], own["top_logprobs"], strict=True):
        assert logprob == max(top.values())


def test_chat(server):
    """Entries are the tokens of the answer; with details, those of the thinking, too."""
    for seed in range(20):
        body = {"logprobs": True, "top_logprobs": 1, "max_tokens": 48, "seed": seed,
                "thinking": {"budget_tokens": 12, "details": True}}  # fmt: skip
        choice = server.chat(**body)["choices"][0]
        if "\ufffd" not in choice["message"]["content"] + choice["message"].get("reasoning", ""):
            break
    entries = choice["logprobs"]["content"]
    assert "".join(e["token"] for e in entries).strip() == choice["message"]["content"]
    thought = choice["logprobs"]["reasoning"]
    assert len(thought) == choice["thinking"]["tokens"] > 0
    for entry in [*entries, *thought]:
        assert entry["bytes"] in (list(entry["token"].encode()), None)
        (top,) = entry["top_logprobs"]
        assert top["logprob"] >= entry["logprob"]
    events = server.events(**body)
    parts = [c["logprobs"] for e in events for c in e["choices"] if "logprobs" in c]
    assert [x for part in parts for x in part["content"]] == entries
    assert [x for part in parts for x in part["reasoning"]] == thought
    assert server.chat(max_tokens=4)["choices"][0]["logprobs"] is None


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"logprobs": True, "top_logprobs": 2}, "top_logprobs"),
        (CHAT, {"top_logprobs": 1}, "top_logprobs"),
        (CHAT, {"echo": True}, "echo"),
        (TEXT, {"logprobs": 2}, "logprobs"),
        (TEXT, {"logprobs": True}, "logprobs"),
        (TEXT, {"echo": True, "stream": True}, "echo"),
        (TEXT, {"echo": True, "logprobs": 0, "stop": "x"}, "echo"),
        (TEXT, {"prompt_logprobs": 1}, "prompt_logprobs"),
    ],
)
def test_what_is_refused(server, path, fields, param):
    base = {"messages": QUESTION} if path == CHAT else {"prompt": "What"}
    reply = server.post(path, {**base, **fields})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == param


def test_an_echo_without_logprobs(server):
    body = {"prompt": ["What", "Add 1"], "max_tokens": 5, "n": 2, "seed": 1, "stop": "e"}
    plain = server.post(TEXT, body).json()["choices"]
    echoed = server.post(TEXT, body | {"echo": True}).json()["choices"]
    prompts = ["What", "What", "Add 1", "Add 1"]
    texts = [p + c["text"] for p, c in zip(prompts, plain, strict=True)]
    assert [c["text"] for c in echoed] == texts
