"""lm-evaluation-harness: over HTTP and on the engine itself the same scores, and those of evaluate.

The answers are graded, choices and texts are scored; a task's stop occurs in the thinking.
"""

import pytest

pytest.importorskip("lm_eval")
import lm_eval
import torch
from lm_eval.tasks import TaskManager

from jaxs1 import lm_eval as ours
from jaxs1.config import UserError
from jaxs1.decoding.params import ThinkingParams
from jaxs1.decoding.scheduler import Limits
from jaxs1.evaluate import EvaluateConfig, evaluate
from tests.conftest import ROOT
from tests.decoding.engines import write_model

TASKS = ROOT / "tests" / "clients" / "tasks"
BUDGET = 40


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Results and filtered answers of a task on a model of the harness."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # the files of the tasks are relative to it
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        manager = TaskManager(include_path=str(TASKS), include_defaults=False)

        def evaluated(model, args, task, **options):
            found = lm_eval.simple_evaluate(
                model, model_args=args, tasks=[task], task_manager=manager, bootstrap_iters=0,
                **options,
            )  # fmt: skip
            samples = sorted(found["samples"][task], key=lambda s: s["doc_id"])
            return found["results"][task], [sample["filtered_resps"] for sample in samples]

        yield evaluated


def local(folder, **settings):
    return {"pretrained": str(folder), "dtype": "float32", "max_length": 512, **settings}


def remote(url, folder, path):
    return {
        "model": "fixed", "base_url": f"{url}/v1/{path}", "tokenizer": str(folder),
        "num_concurrent": 2, "max_retries": 1, "max_length": 512,
        "tokenizer_backend": None if "chat" in path else "huggingface",
    }  # fmt: skip


def test_answers(run, url, folder, tmp_path):
    """Three of five are 42; the stop "First" is all that the model thinks, and stops nothing."""
    chat = {"apply_chat_template": True, "gen_kwargs": {"thinking_token_budget": BUDGET}}
    http = run("local-chat-completions", remote(url, folder, "chat/completions"),
               "jaxs1_answers", **chat)  # fmt: skip
    direct = run("jaxs1", local(folder), "jaxs1_answers", **chat)
    assert direct[1] == http[1] == [["42"]] * 5
    assert direct[0]["exact_match,none"] == http[0]["exact_match,none"] == 0.6
    config = EvaluateConfig(
        model=str(folder), dtype="float32", task=str(TASKS / "questions.jsonl"),
        output=str(tmp_path / "evaluation"), limits=Limits(max_seq_len=512, kv_cache_tokens=8192),
        thinking=ThinkingParams(max=BUDGET),
    )  # fmt: skip
    (point,) = evaluate(config).points
    assert point.accuracy == 0.6


@pytest.mark.parametrize(
    ("task", "metric"), [("jaxs1_choices", "acc,none"), ("jaxs1_texts", "word_perplexity,none")]
)
def test_scores(run, url, folder, task, metric):
    """Log-likelihoods need echo and logprobs over HTTP, the engine's `score` directly."""
    http = run("local-completions", remote(url, folder, "completions"), task)
    direct = run("jaxs1", local(folder), task)
    assert direct[0][metric] == pytest.approx(http[0][metric], rel=1e-6)
    flat = [[x for pair in one for x in _listed(pair)] for one in direct[1]]
    assert flat == [
        pytest.approx([x for pair in one for x in _listed(pair)], abs=1e-4) for one in http[1]
    ]


def _listed(value):
    return value if isinstance(value, list | tuple) else [value]


def test_log_likelihoods_are_those_of_transformers(tmp_path):
    model = write_model(tmp_path / "tiny", context=256)
    harness = ours.HarnessModel(str(tmp_path / "tiny"), dtype="float32", max_length=64)
    ids, following = harness._encode_pair("What is 12 + 30? ", "The answer is 42.")
    with torch.no_grad():
        logprobs_TV = torch.log_softmax(model(torch.tensor([[*ids, *following]])).logits[0], -1)
    own_T = logprobs_TV[range(len(ids) - 1, len(ids) + len(following) - 1), following]
    ((found, greedy),) = harness._loglikelihood_tokens([(("", ""), ids, following)])
    assert found == pytest.approx(own_T.sum().item(), abs=1e-4) and not greedy
    # a prompt that does not fit loses its beginning
    ((cut, _),) = harness._loglikelihood_tokens([(("", ""), [5] * 99 + ids, following)])
    assert cut != found


@pytest.mark.parametrize("settings", [{"thinking_buget": 3}, {"frobnicate": 1}])
def test_unknown_settings_are_refused(folder, settings):
    with pytest.raises(UserError, match="no such setting"):
        ours.HarnessModel(**local(folder, **settings))
