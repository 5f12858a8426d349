"""Questions to the local engine: transformers' answers, many threads, every way to fail."""

import json
import threading
import time

import pytest

from jaxs1.config import UserError
from jaxs1.curate import main, open_model
from jaxs1.curation.labelers import ModelConfig
from jaxs1.decoding.params import ThinkingParams
from jaxs1.decoding.prompt import prompt_ids
from jaxs1.inference.interface import NoAnswer, answer_all
from jaxs1.inference.local_engine import LocalEngine
from tests.curation.conftest import bare_pool, command
from tests.decoding import engines

PROMPTS = {str(i): f"Question {i}: what is {i} and {i * i}?" for i in range(7)}
TOKENS = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder, and the transformers model in it."""
    folder = tmp_path_factory.mktemp("model")
    return folder, engines.write_model(folder)


def settings(model, **more):
    return ModelConfig(model=str(model[0]), temperature=0, max_tokens=TOKENS, parallel=2, **more)


def expected(model, prompt):
    """What transformers answers."""
    tokenizer = engines.tokenizer()
    messages = [{"role": "user", "content": prompt}]
    ids = prompt_ids(messages, ThinkingParams(mode="off"), tokenizer)
    ends = {tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")}
    written = engines.new_tokens(model[1], ids, ends=ends, max_tokens=TOKENS)
    return tokenizer.decode([t for t in written if t not in ends], skip_special_tokens=True).strip()


def test_answers_are_those_of_transformers(model):
    before = threading.active_count()
    answers = dict(answer_all(open_model(settings(model)), PROMPTS.items()))
    assert answers == {key: expected(model, prompt) for key, prompt in PROMPTS.items()}
    assert len(set(answers.values())) > 3
    assert threading.active_count() == before  # the engine was given back


def test_an_answer_depends_on_its_question_only(model):
    warm = ModelConfig(model=str(model[0]), temperature=2.0, max_tokens=TOKENS, parallel=3)
    first = dict(answer_all(open_model(warm), PROMPTS.items()))
    again = dict(answer_all(open_model(warm), reversed(list(PROMPTS.items())[2:5])))
    assert again == {key: first[key] for key in again}
    assert len(again) == 3


def test_identity_tells_weights_and_sampling_apart(model, tmp_path):
    engines.write_model(tmp_path, seed=1)
    configs = [
        settings(model),
        settings((tmp_path,)),
        ModelConfig(model=str(model[0]), temperature=1, max_tokens=TOKENS),
        ModelConfig(model=str(model[0]), temperature=0, max_tokens=TOKENS + 1),
    ]
    assert len({open_model(config).identity for config in configs}) == 4
    assert open_model(settings(model)).identity == open_model(configs[0]).identity


class Broken:
    """An engine whose second step fails."""

    tokenizer, submitted, busy, steps = engines.tokenizer(), 0, False, 0

    def submit(self, request):
        self.submitted += 1
        self.busy = True
        return self.submitted - 1

    def step(self, meanwhile):
        self.steps += 1
        if self.steps == 2:
            raise RuntimeError("out of memory\nallocating 1 GB")
        return []


def test_engine_that_breaks_tells_all_who_ask(model, monkeypatch):
    monkeypatch.setattr(LocalEngine, "_open", lambda self: Broken())
    answers = dict(answer_all(open_model(settings(model)), PROMPTS.items()))
    assert answers.keys() == PROMPTS.keys()
    for failure in answers.values():
        assert isinstance(failure, NoAnswer) and failure.fatal
        assert str(failure) == "out of memory allocating 1 GB"


def test_closing_ends_all_who_wait(model, monkeypatch):
    broken = Broken()
    broken.step = lambda meanwhile: []  # never answers
    monkeypatch.setattr(LocalEngine, "_open", lambda self: broken)
    opened = open_model(settings(model))
    caught = []

    def ask():
        try:
            opened.answer("q")
        except NoAnswer as failure:
            caught.append(str(failure))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    while broken.submitted < 3:
        time.sleep(0.01)
    opened.close()
    for thread in threads:
        thread.join(10)
    assert caught == ["interrupted"] * 3


def test_engine_that_cannot_be_opened_is_one_line(model):
    with pytest.raises(
        UserError, match=r"the local engine with .*parallel.tensor=64.*needs 64 devices"
    ):
        list(answer_all(open_model(settings(model, tensor=64)), PROMPTS.items()))


def curate(pool, folder, *more):
    return main([str(x) for x in command(pool, folder, *more)[1:]])


def test_command_with_our_own_engine(model, tmp_path, subjects, monkeypatch):
    """Difficulty and subject; a question that is too long is refused, the others go on."""
    pool, rows = bare_pool(tmp_path, 6)
    rows[1]["question"] = "Question 1: " + "why? " * 600
    rows[2]["question"] += " \ud83d"  # half a surrogate pair
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = [
        *("--features.cache", tmp_path / "cache"),
        *("--features.small.model", model[0], "--features.classifier.model", model[0]),
        *("--features.small.max_tokens", TOKENS, "--features.classifier.max_tokens", TOKENS),
        *("--features.small.temperature", 0, "--features.classifier.temperature", 0),
        *("--features.small.parallel", 1, "--subjects", subjects, "--solved", '["solved_small"]'),
        *("--recipe", "random", "--stages.missing", "false", "--size", 3),
    ]
    with pytest.raises(UserError, match=r"subject: 1 unanswered by the local engine .*prompt of"):
        curate(pool, tmp_path, *more)
    assert curate(pool, tmp_path, *more, "--features.allow_failed", "true") == 0
    funnel = json.loads((tmp_path / "out" / "funnel.json").read_text())
    counts = {name: (f["computed"], f["cached"]) for name, f in funnel["features"].items()}
    assert counts == {"subject": (0, 5), "solved_small": (5, 0)}
    lines = [
        json.loads(line)
        for path in (tmp_path / "cache").glob("solved_small-*/*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert [line["value"] for line in lines] == [False] * 5
    # nothing is computed twice: the engine is not even opened
    monkeypatch.delattr(LocalEngine, "_open")
    pool.write_text("".join(json.dumps(row) + "\n" for i, row in enumerate(rows) if i != 1))
    assert curate(pool, tmp_path / "again", *more) == 0


def test_model_that_is_not_there(tmp_path):
    pool, _ = bare_pool(tmp_path, 3)
    with pytest.raises(UserError, match=r"^features.small.model: nowhere: no such folder"):
        curate(pool, tmp_path, "--features.small.model", "nowhere")
