"""Twenty steps of SFT equal a plain torch + transformers loop on the same sequences."""

import numpy as np
import pytest
import torch
import transformers

from jaxs1.data.batches import Batches
from jaxs1.data.chat import Example
from jaxs1.data.config import DataConfig
from jaxs1.model import transformer
from jaxs1.training.config import OptimizerConfig
from jaxs1.training.optimizer import make_optimizer
from jaxs1.training.step import init_state, make_train_step, put_batch
from tests.numerics import assert_close
from tests.tiny_models import hf_model, ours

STEPS = 20
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, warmup_ratio=0.2, weight_decay=0.1, eps=1e-6)


def make_examples():
    """Sequences with structure, so that the loss can fall: every token follows from the last."""
    rng = np.random.default_rng(0)
    follows = rng.permutation(96)
    examples = []
    for n in rng.integers(6, 40, 100):
        tokens = [int(rng.integers(96))]
        while len(tokens) < n:
            tokens.append(int(follows[tokens[-1]] if rng.random() < 0.9 else rng.integers(96)))
        examples.append(Example(np.asarray(tokens, np.int32), np.arange(n) >= n // 3))
    return examples


def one_by_one(model, chosen, loss_kind):
    """Loss of one sequence at a time with torch's cross-entropy; adds up the gradients."""
    counts = [int(e.is_target[1:].sum()) for e in chosen]
    total = 0.0
    for e, count in zip(chosen, counts, strict=True):
        tokens = torch.tensor(e.tokens, dtype=torch.long)
        labels = torch.where(torch.tensor(e.is_target), tokens, -100)[1:]
        logits = model(tokens[None]).logits[0, :-1]
        summed = torch.nn.functional.cross_entropy(
            logits, labels, ignore_index=-100, reduction="sum"
        )
        share = sum(counts) if loss_kind == "token" else count * len(chosen)
        (summed / share).backward()
        total += summed.item() / share
    return total


def padded(model, chosen, _):
    """transformers' own loss of a padded batch, which for experts includes that of the router."""
    width = max(len(e.tokens) for e in chosen)
    tokens, labels, mask = torch.zeros((3, len(chosen), width), dtype=torch.long)
    labels -= 100
    for row, e in enumerate(chosen):
        tokens[row, : len(e.tokens)] = torch.tensor(e.tokens)
        labels[row, : len(e.tokens)] = torch.where(
            torch.tensor(e.is_target), torch.tensor(e.tokens, dtype=torch.long), -100
        )
        mask[row, : len(e.tokens)] = 1
    loss = model(tokens, attention_mask=mask, labels=labels, output_router_logits=True).loss
    loss.backward()
    return loss.item()


def torch_losses(model, examples, batches, loss_kind, forward=one_by_one):
    """The plain loop: torch's AdamW on the gradients of `forward`."""
    decayed = [p for n, p in model.named_parameters() if not ("norm" in n or "bias" in n)]
    kept = [p for n, p in model.named_parameters() if "norm" in n or "bias" in n]
    o = OPTIMIZER
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": o.weight_decay}, {"params": kept, "weight_decay": 0}],
        lr=o.learning_rate,
        betas=(o.b1, o.b2),
        eps=o.eps,
    )
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, STEPS // 5, STEPS)
    losses = []
    for step in range(STEPS):
        chosen = [examples[i] for i in batches.indices(step)]
        total = forward(model, chosen, loss_kind)
        torch.nn.utils.clip_grad_norm_(model.parameters(), o.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


def our_losses(model, examples, loss):
    """Losses of our steps on the same sequences; the batches, and the last state."""
    batches = Batches(
        examples,
        DataConfig(row_multiple=128),
        batch_size=8,
        gradient_accumulation_steps=1,
        loss=loss,
        seed=0,
        num_row_shards=1,
        attention=0.01,
        padding_id=0,
    )
    optimizer = make_optimizer(OPTIMIZER, STEPS)
    step = make_train_step(model, optimizer, loss_chunk=64)
    state = init_state(model, optimizer, transformer.parameters(model))
    found = []
    for number in range(STEPS):
        batch, _ = batches.batch(number)
        state, metrics = step(state, put_batch(batch, model.rules))
        found.append(float(metrics.loss))
    return found, batches, state, metrics


@pytest.mark.parametrize("loss", ["token", "sequence"])
def test_twenty_steps_equal_torch(loss, tmp_path):
    oracle = hf_model("qwen2-tied-14-2")
    examples = make_examples()
    found, batches, state, _ = our_losses(ours(oracle, tmp_path), examples, loss)
    expected = torch_losses(oracle.train(), examples, batches, loss)
    assert expected[-1] < 0.7 * expected[0]
    for mine, theirs in zip(found, expected, strict=True):
        assert_close(mine, theirs, "SFT losses = torch loop, 20 steps")
    after = dict(oracle.named_parameters())["model.norm.weight"].detach().numpy()
    assert_close(state.params["final_norm"]["scale"], after, "SFT losses = torch loop, 20 steps")


@pytest.mark.parametrize("coefficient", [0.1, 0.0])
def test_twenty_steps_with_experts_equal_torch(coefficient, tmp_path):
    oracle = hf_model("qwen3_moe-untied-8-2", layers=2, router_aux_loss_coef=coefficient)
    examples = make_examples()
    found, batches, state, metrics = our_losses(ours(oracle, tmp_path), examples, "token")
    expected = torch_losses(oracle.train(), examples, batches, "token", padded)
    assert expected[-1] < 0.7 * expected[0]
    for mine, theirs in zip(found, expected, strict=True):
        assert_close(mine, theirs, "SFT losses = torch loop, 20 steps")
    assert set(metrics.tokens.sums) == ({"router_loss"} if coefficient else set())
    router = dict(oracle.named_parameters())["model.layers.1.mlp.gate.weight"].detach().numpy().T
    after = state.params["layers"]["mlp"]["router"]["kernel"][1]
    assert_close(after, router, "SFT losses = torch loop, 20 steps")
