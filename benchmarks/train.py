"""Training speed compared with a plain transformers + torch loop, in one run on this machine.

    python -m benchmarks.train [--steps 5] [--seed 0]

Weights, sequences, optimizer and dtype (float32) are the same. Sequence lengths are distributed as
in s1K, scaled down by 16 for a CPU. Torch runs twice: with the 16 sequences of a step padded to the
longest (the default collator), and one at a time with accumulated gradients (as s1 did on each
GPU). All three take turns in every step, which makes the comparison robust to drifting machine
speed. Nothing is printed unless the losses agree.
"""

from __future__ import annotations

import argparse
import json
import time

import jax
import numpy as np
import optax
import torch
import transformers
from flax import nnx

from convert.mapping import pieces
from jaxs1.data.batches import Batches
from jaxs1.data.chat import Example
from jaxs1.data.config import DataConfig
from jaxs1.model import transformer
from jaxs1.model.architecture import Architecture
from jaxs1.model.config import ComputeConfig, MeshConfig
from jaxs1.model.sharding import make_sharding_rules
from jaxs1.training.step import init_state, make_train_step, put_batch

SHAPE = {
    "model_type": "qwen2",
    "vocab_size": 16384,
    "hidden_size": 448,
    "intermediate_size": 2432,
    "num_hidden_layers": 6,
    "num_attention_heads": 7,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
BATCH, PROMPT = 16, 0.1


def make_examples(count: int, rng: np.random.Generator) -> list[Example]:
    """Random ids; lengths log-normal like s1K's (median 4,000 tokens, up to 20,000), over 16."""
    lengths = np.clip(rng.lognormal(np.log(4000), 0.65, count), 600, 20000) / 16
    return [
        Example(rng.integers(0, SHAPE["vocab_size"], n).astype(np.int32), np.arange(n) > n * PROMPT)
        for n in lengths.astype(int)
    ]


def torch_step(model, optimizer, examples, *, padded):
    """One optimizer step of a plain loop; returns the mean loss over all target tokens."""
    targets = sum(int(e.is_target[1:].sum()) for e in examples)
    groups = [examples] if padded else [[e] for e in examples]
    total = 0.0
    for group in groups:
        longest = max(len(e.tokens) for e in group)
        tokens = torch.zeros((len(group), longest), dtype=torch.long)
        labels = torch.full((len(group), longest), -100)
        mask = torch.zeros((len(group), longest), dtype=torch.long)
        for row, e in enumerate(group):
            n = len(e.tokens)
            tokens[row, :n] = torch.from_numpy(e.tokens)
            labels[row, :n] = torch.where(torch.from_numpy(e.is_target), tokens[row, :n], -100)
            mask[row, :n] = 1
        logits = model(tokens, attention_mask=mask if padded else None).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
        )
        (loss / targets).backward()
        total += loss.item() / targets
    optimizer.step()
    optimizer.zero_grad()
    return total


def torch_model(architecture, params):
    """A transformers model with the same weights, and its optimizer."""
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**SHAPE), attn_implementation="sdpa"
    ).float()
    names = dict(model.named_parameters())
    for piece in pieces(architecture):
        value = params
        for key in piece.param.split("."):
            value = value[key]
        block = piece.to_hf(np.asarray(value)[piece.index])
        with torch.no_grad():
            names[piece.hf][piece.rows].copy_(torch.tensor(block))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0)
    return model.train(), optimizer


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=5, help="number of measured steps")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the lengths")
    arguments = parser.parse_args()
    architecture = Architecture.from_hf(SHAPE, "benchmark")
    examples = make_examples(BATCH * arguments.steps, np.random.default_rng(arguments.seed))
    rules = make_sharding_rules(MeshConfig(), jax.devices()[:1])
    compute = ComputeConfig(
        dtype="float32", remat="none", scan_layers=False, attention="xla", loss_chunk=256
    )
    model = transformer.abstract(architecture, compute, rules)
    params = transformer.parameters(
        transformer.Transformer(architecture, compute, rules, rngs=nnx.Rngs(0))
    )
    loops = {
        "torch, padded batch": (*torch_model(architecture, params), True),
        "torch, one by one": (*torch_model(architecture, params), False),
    }
    optimizer = optax.adamw(1e-4, b1=0.9, b2=0.95, weight_decay=0)
    step = make_train_step(model, optimizer, loss_chunk=compute.loss_chunk)
    state = init_state(model, optimizer, params)
    a = architecture
    batches = Batches(
        examples,
        DataConfig(row_multiple=256),
        batch_size=BATCH,
        gradient_accumulation_steps=1,
        loss="token",
        seed=0,
        num_row_shards=1,
        attention=2 * a.num_layers * a.num_heads * a.head_dim / (a.train_flops(1, 0) / 6),
        padding_id=0,
    )
    shapes = set()
    for number in range(arguments.steps):  # compile every shape before measuring
        batch, _ = batches.batch(number)
        if batch.tokens.shape not in shapes:
            shapes.add(batch.tokens.shape)
            copy = jax.tree.map(lambda x: x.copy(), state)
            jax.block_until_ready(step(copy, put_batch(batch, rules)))
    for torch_loop, _, padded in loops.values():  # warm up
        tokens = torch.zeros((BATCH if padded else 1, 64), dtype=torch.long)
        torch_loop(tokens).logits.sum().backward()
        torch_loop.zero_grad()
    speeds: dict[str, list[float]] = {"jaxs1, packed": [], **{name: [] for name in loops}}
    losses: dict[str, list[float]] = {name: [] for name in speeds}
    for number in range(arguments.steps):
        start = time.perf_counter()
        batch, stats = batches.batch(number)
        state, metrics = step(state, put_batch(batch, rules))
        losses["jaxs1, packed"].append(float(metrics.loss))
        speeds["jaxs1, packed"].append(stats.tokens / (time.perf_counter() - start))
        chosen = [examples[i] for i in batches.indices(number)]
        for name, (torch_loop, torch_optimizer, padded) in loops.items():
            start = time.perf_counter()
            losses[name].append(torch_step(torch_loop, torch_optimizer, chosen, padded=padded))
            speeds[name].append(stats.tokens / (time.perf_counter() - start))
    for name, values in losses.items():
        np.testing.assert_allclose(values, losses["jaxs1, packed"], rtol=1e-4, err_msg=name)
    report(architecture, speeds, losses, batches, arguments.steps)


def report(architecture, speeds, losses, batches, steps) -> None:
    """Print a table, and its figures as one JSON line."""
    median = {name: float(np.median(values)) for name, values in speeds.items()}
    jaxs1 = np.asarray(speeds["jaxs1, packed"])
    lengths = batches.lengths
    print(
        f"{architecture.num_parameters:,} parameters, float32, {steps} steps of {BATCH} sequences "
        f"of {lengths.min()} to {lengths.max()} tokens (mean {lengths.mean():.0f}); losses agree\n"
    )
    print(f"{'':22}{'tokens/s (median)':>18}{'min':>9}{'max':>9}{'last loss':>11}")
    for name, values in speeds.items():
        print(
            f"{name:22}{median[name]:18,.0f}{min(values):9,.0f}{max(values):9,.0f}"
            f"{losses[name][-1]:11.4f}"
        )
    print()
    ratios = {}
    for name in (name for name in speeds if name.startswith("torch")):
        pairs = jaxs1 / np.asarray(speeds[name])
        ratios[name] = float(np.median(pairs))
        print(
            f"jaxs1 / {name}: {ratios[name]:.2f} (by step {pairs.min():.2f} to {pairs.max():.2f})"
        )
    threads = torch.get_num_threads()
    print(json.dumps({"tokens_per_s": median, "ratio": ratios, "steps": steps, "threads": threads}))


if __name__ == "__main__":
    main()
