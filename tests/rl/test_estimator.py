"""The mean of the policy gradient over roll-outs is the gradient of the expected reward.

The expectation is enumerated: all choices of a model of nine words, which the plain-Python
controller turns into tokens, with probabilities and derivatives from torch in float64.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxs1.decoding.params import Request, SamplingParams, ThinkingParams
from jaxs1.decoding.scheduler import Limits
from jaxs1.decoding.tokenized_thinking import tokenize_thinking
from jaxs1.model import transformer
from jaxs1.rl.advantages import advantages
from jaxs1.rl.batches import pack, sequence_weights, trajectory
from jaxs1.rl.config import ObjectiveConfig
from jaxs1.rl.objective import make_scorer, policy_loss
from jaxs1.rl.rollout import RolloutEngine
from jaxs1.rl.sizes import gated_ids
from jaxs1.training.loss import Distribution
from tests.decoding.oracle import Case, Oracle
from tests.decoding.words import Words
from tests.tiny_models import hf_model, ours

pytestmark = pytest.mark.slow

TEMPERATURE = 1.3
PADDED = 12  # ids of the model; there are nine words
GROUPS, GROUP = 256, 16
PROMPT = [8, 4]
CASES = {
    "cut": {"max": 2},
    "wait": {"max": 3, "num_waits": 1},
    "minimum": {"max": 3, "min": 2},
}
PREFIX, LINE_BREAK, WAIT = 8, 6, 7
CONFIG = ObjectiveConfig(aggregate="constant")


def reward(tokens):
    """Depends on what is thought, on what is written, and on the answer."""
    return float((3 * tokens[0] + len(tokens) + tokens[-1]) % 4 == 0)


def thinking_of(name):
    return ThinkingParams(
        preset="s1", answer_prefix="x", max_answer_tokens=1, min_answer_tokens=1, **CASES[name]
    )


def case_of(name):
    """The same request, by hand: <eos> is 1, <|im_start|> 2, <|im_end|> 3."""
    given = {"thinking_budget": CASES[name]["max"], "num_waits": CASES[name].get("num_waits", 0)}
    return Case(
        **given, min_thinking=CASES[name].get("min", 0), max_answer_tokens=1, max_new_tokens=50,
        last=4, ends=[[2]], stops=[[3], [1]], reopen=[2, 4], close=[2, 5], lead=[LINE_BREAK],
        answer_prefix=[PREFIX], waits=[[WAIT]], newlines={LINE_BREAK},
    )  # fmt: skip


def outcomes(case, words):
    """Every way to choose until the end: [(position, choice, banned ids)], tokens, forced."""
    complete, open_ = [], [[]]
    while open_:
        chosen = open_.pop()
        oracle, choices, decisions = Oracle(case), iter(chosen), []
        while not oracle.over:
            if not oracle.asks:
                oracle.choose(0)
                continue
            place, banned = len(oracle.tokens), sorted(oracle.banned)
            choice = next(choices, None)
            if choice is None:
                open_ += [[*chosen, i] for i in range(words) if i not in oracle.banned]
                break
            decisions.append((place, choice, banned))
            oracle.choose(choice)
        if oracle.over:
            complete.append((decisions, oracle.tokens, oracle.forced))
    return complete


def exact_gradient(model, name, prompt):
    """Expected reward and its gradient by the head and by an MLP, in our layouts.

    Also the direction in which forced tokens would pull if they counted as chosen.
    """
    model = model.double()
    found = outcomes(case_of(name), len(Words()))
    longest = max(len(tokens) for _, tokens, _ in found)
    ids = torch.tensor([[*prompt, *t, *[0] * (longest - len(t))] for _, t, _ in found])
    forced = torch.tensor([[*f, *[False] * (longest - len(f))] for *_, f in found])
    logits = model(ids).logits[:, len(prompt) - 1 : -1] / TEMPERATURE
    choice = torch.zeros(logits.shape[:2], dtype=torch.long)
    decided, forbidden = torch.zeros(choice.shape), torch.zeros(logits.shape, dtype=torch.bool)
    forbidden[..., len(Words()) :] = True
    for i, (decisions, *_) in enumerate(found):
        for place, chosen, banned in decisions:
            choice[i, place], decided[i, place], forbidden[i, place, banned] = chosen, 1, True
    logp_V = torch.log_softmax(logits.masked_fill(forbidden, -torch.inf), -1)
    logp = logp_V.gather(-1, choice[..., None])[..., 0]
    p = torch.exp(torch.where(decided > 0, logp, 0).sum(-1))
    # nothing was left out, nothing counted twice
    assert p.sum().item() == pytest.approx(1, abs=1e-9)
    rewards = torch.tensor([reward(tokens) for _, tokens, _ in found], dtype=torch.float64)
    expected = p @ rewards
    written = torch.log_softmax(logits, -1).gather(-1, ids[:, len(prompt) :, None])[..., 0]
    pull = (p * (rewards - expected)).detach() @ torch.where(forced, written, 0).sum(-1)
    weights = (model.lm_head.weight, model.model.layers[1].mlp.down_proj.weight)
    gradients = [torch.autograd.grad(x, weights, retain_graph=True) for x in (expected, pull)]
    trees = [{"head": head.numpy().T, "down": down.numpy().T} for head, down in gradients]
    return expected.item(), *trees


def picked(gradients):
    """Of a tree of gradients those that are compared."""
    return {
        "head": gradients["lm_head"],
        "down": gradients["layers"]["mlp"]["down"]["kernel"][1],
    }


def projections(tree, directions):
    return jnp.stack([sum(jnp.vdot(tree[k], d[k]) for k in tree) for d in directions])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The model in torch and here, and an engine on it."""
    theirs = hf_model("qwen2-untied-4-4", vocab=PADDED, layers=2)
    with torch.no_grad():
        theirs.lm_head.weight.mul_(2)
    mine = ours(theirs, tmp_path_factory.mktemp("estimator"))
    limits = Limits(max_num_seqs=64, max_seq_len=64, decode_steps=8)
    engine = RolloutEngine(mine, Words(), limits, tensor=1, num_pages=lambda _: 65)
    params = transformer.parameters(mine)
    engine.load(params, None)
    return theirs, mine, params, engine


def roll_out(engine, name):
    sampling = SamplingParams(temperature=TEMPERATURE)
    request = Request(PROMPT, thinking_of(name), sampling, n=GROUP, logprobs=True)
    return engine.complete([dataclasses.replace(request, seed=i) for i in range(GROUPS)])


def estimates(model, params, distribution, groups, directions, *, count_forced):
    """Each group's estimate of the gradient, projected."""
    rewards = np.array([[reward(c.tokens) for c in completions] for completions in groups])
    values, _ = advantages(rewards, "none")
    batches = []
    for completions, advantage_G in zip(groups, values, strict=True):
        made = [trajectory(c, a) for c, a in zip(completions, advantage_G, strict=True)]
        if count_forced:
            n = len(completions[0].prompt_ids)
            made = [
                t._replace(chosen=np.arange(len(t.tokens)) >= n, targets=t.tokens) for t in made
            ]
        weights = sequence_weights(made, CONFIG, sequences=GROUP, longest=1)
        batches.append(pack(made, weights, rows=8, row_length=64, padding_id=0))
    assert {batch.tokens.shape[0] for batch in batches} == {1}
    batch = jax.tree.map(lambda *x: np.concatenate(x), *batches)
    if count_forced:  # as if they had been drawn: a ratio of 1
        scores = np.asarray(make_scorer(model, distribution, chunk=512)(params, None, batch))
        sampled = np.where(batch.columns.weights > 0, scores, 0)
        batch = batch._replace(columns=batch.columns._replace(sampled=sampled))
    loss = policy_loss(CONFIG, distribution)

    @jax.jit
    def one(micro):
        def total(params):
            return loss(transformer.with_parameters(model, params), micro, chunk=512)

        (_, metrics), gradients = jax.value_and_grad(total, has_aux=True)(params)
        return -projections(picked(gradients), directions), metrics.maxima["gap"]

    found_PK, gap_P = jax.lax.map(one, batch)
    assert float(gap_P.max()) < 1e-4
    return np.asarray(found_PK, np.float64)


def distance(found_PK, exact_K):
    """Largest distance of the mean from what it estimates, in standard errors."""
    error_K = found_PK.std(axis=0, ddof=1) / np.sqrt(len(found_PK))
    # the group's mean as the baseline contains the sample itself: a factor, no other direction
    return np.abs(found_PK.mean(axis=0) - exact_K * (GROUP - 1) / GROUP) / error_K


@pytest.mark.parametrize(
    "name", ["wait", *(pytest.param(n, marks=pytest.mark.slow) for n in ("cut", "minimum"))]
)
def test_the_estimate_is_the_gradient_and_is_not_with_forced_tokens(name, tiny):
    theirs, mine, params, engine = tiny
    tokenized = tokenize_thinking(thinking_of(name), Words())
    prompt = [*PROMPT, *tokenized.start]
    expected, exact, pull = exact_gradient(theirs, name, prompt)
    groups = roll_out(engine, name)
    rewards = np.array([[reward(c.tokens) for c in completions] for completions in groups])
    error = rewards.std() / np.sqrt(rewards.size)
    assert abs(rewards.mean() - expected) < 4 * error
    rng = np.random.default_rng(0)
    random = [{k: rng.normal(size=x.shape) for k, x in exact.items()} for _ in range(6)]
    directions = [exact, pull, *random]
    exact_K = np.array([sum(np.vdot(exact[k], d[k]) for k in exact) for d in directions])
    distribution = Distribution(TEMPERATURE, len(Words()), gated_ids(tokenized, Words()))
    settings = (mine, params, distribution, groups, directions)
    right = distance(estimates(*settings, count_forced=False), exact_K)
    wrong = distance(estimates(*settings, count_forced=True), exact_K)
    assert right.max() < 4, right
    assert wrong.max() > 4, wrong
