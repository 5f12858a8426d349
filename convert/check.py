"""Compare the logits of two checkpoints: python -m convert.check A B.

Prints the largest difference of the logits relative to the largest logit, on random or given
prompts; the exit status is 1 if it exceeds the tolerance. Both checkpoints run in jaxs1 or, with
`--against transformers`, B runs in transformers and torch. One model is in memory at a time, on
one device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from convert.interface import Weights
from convert.weights import load_params, open_weights
from jaxs1.config import UserError, one_line, parse, run_command
from jaxs1.data.tokenizer import load_tokenizer
from jaxs1.model import transformer
from jaxs1.model.config import ComputeConfig, MeshConfig
from jaxs1.model.sharding import make_sharding_rules

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Check:
    """Compare the logits of two checkpoints.

    Args:
        a: Hugging Face folder or hub id, Orbax checkpoint, training run or one of its steps
        b: checkpoint to compare with a
        prompts: text file with one prompt per line, tokenized for a; null uses random token ids
        num_prompts: number of random prompts
        length: length of each random prompt [tokens]
        seed: random seed for the prompts
        tolerance: maximum difference, relative to the largest logit
        dtype: dtype of weights and computation
        against: library that computes the logits of b
    """

    a: str
    b: str
    prompts: str | None = None
    num_prompts: int = 4
    length: int = 64
    seed: int = 0
    tolerance: float = 1e-4
    dtype: Dtype = "float32"
    against: Literal["jaxs1", "transformers"] = "jaxs1"

    def __post_init__(self) -> None:
        """Check that there is something to compare."""
        for name in ("num_prompts", "length"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")


def jaxs1_logits(weights: Weights, prompts: list[np.ndarray], dtype: Dtype) -> list[np.ndarray]:
    """Logits of each prompt [T] computed by jaxs1, float32 [T, V]."""
    compute = ComputeConfig(dtype=dtype, param_dtype=dtype, remat="none", attention="xla")
    rules = make_sharding_rules(MeshConfig(), jax.devices()[:1])
    model = transformer.abstract(weights.architecture, compute, rules)
    params = load_params(weights, model)

    @jax.jit
    def run(params: transformer.Params, tokens: jax.Array, segments: jax.Array) -> jax.Array:
        filled = transformer.with_parameters(model, params)
        positions = jnp.arange(longest, dtype=jnp.int32)[None]
        return filled.logits(filled(tokens, positions, segments))[0]

    longest = max(len(prompt) for prompt in prompts)
    logits = []
    for prompt in prompts:
        rest = longest - len(prompt)
        tokens = np.pad(prompt, (0, rest)).astype(np.int32)[None]
        segments = np.pad(np.ones_like(prompt), (0, rest)).astype(np.int32)[None]
        logits.append(np.asarray(run(params, tokens, segments))[: len(prompt)])
    return logits


def transformers_logits(folder: str, prompts: list[np.ndarray], dtype: Dtype) -> list[np.ndarray]:
    """Logits of each prompt [T] computed by transformers, float32 [T, V].

    Raises:
        UserError: the extra `torch` is not installed, or transformers cannot load the folder.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(
            f"against=transformers: {error.name} is not installed; pip install 'jaxs1[torch]'"
        ) from None
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype)
        ).eval()
    except (OSError, ValueError) as error:
        reason = one_line(error)
        raise UserError(f"{folder}: transformers cannot load it ({reason})") from None
    with torch.no_grad():
        rows = [model(torch.from_numpy(prompt)[None].long()).logits[0] for prompt in prompts]
    return [row.float().numpy() for row in rows]


def largest_difference(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """Largest difference relative to the largest magnitude in `a`; infinite if one is NaN."""
    scale = max(float(np.abs(row).max()) for row in a)
    difference = max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))
    share = difference / scale if scale else difference
    return share if np.isfinite(share) else float("inf")


def check(options: Check) -> float:
    """Largest relative difference between the logits of `options.a` and `options.b`."""
    weights_a = open_weights(options.a)
    prompts = _prompts(options, weights_a)
    if options.against == "transformers":
        b = transformers_logits(options.b, prompts, options.dtype)
    else:
        b = jaxs1_logits(open_weights(options.b), prompts, options.dtype)
    a = jaxs1_logits(weights_a, prompts, options.dtype)
    if a[0].shape != b[0].shape:
        raise UserError(
            f"{options.b}: vocab_size={b[0].shape[1]}: must be that of {options.a}, "
            f"{a[0].shape[1]}; the two cannot be compared"
        )
    return largest_difference(a, b)


def main(argv: Sequence[str]) -> int:
    """Run the command; returns 1 if the difference exceeds the tolerance."""
    options = parse(Check, argv, command="python -m convert.check", positionals=("a", "b"))
    difference = check(options)
    passed = difference <= options.tolerance
    print(
        f"largest logit difference: {difference:.3g} of the largest logit "
        f"({'within' if passed else 'over'} the tolerance {options.tolerance:g})"
    )
    return 0 if passed else 1


def _prompts(options: Check, weights: Weights) -> list[np.ndarray]:
    """Token ids [T] of each prompt."""
    if options.prompts is None:
        shape = (options.num_prompts, options.length)
        random = np.random.default_rng(options.seed)
        return list(random.integers(0, weights.architecture.vocab_size, shape, dtype=np.int32))
    try:
        lines = Path(options.prompts).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts={options.prompts}: cannot be read ({error})") from None
    tokenizer = load_tokenizer(str(weights.aux_files))
    ids = [np.asarray(tokenizer(line)["input_ids"], np.int32) for line in lines if line.strip()]
    if not ids:
        raise UserError(f"prompts={options.prompts}: is empty; give one prompt a line")
    return ids


if __name__ == "__main__":
    run_command(main)
