"""Do two checkpoints compute the same? python -m convert.check A B.

Prints the largest difference of the logits, relative to the largest logit, on random or given
prompts; exit status 1 where it is over the tolerance. Both sides run through our model, or, with
`--against transformers`, B through transformers and torch. One model is in memory at a time, on
one device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from convert.interface import Weights
from convert.weights import load_params, open_weights
from jaxs1.config import UserError, one_line, parse, run_command
from jaxs1.model import transformer
from jaxs1.model.config import ComputeConfig, MeshConfig
from jaxs1.model.sharding import make_sharding_rules


@dataclass(frozen=True)
class Check:
    """Compare the logits of two checkpoints.

    Args:
        a: a Hugging Face folder or hub id, a checkpoint of ours or a training run
        b: what it is compared with, likewise
        prompts: text file, one prompt a line, read with the tokenizer of a; null: random ids
        num_prompts: number of random prompts
        length: of a random prompt [tokens]
        seed: of random prompts
        tolerance: largest difference that passes, as a share of the largest logit
        dtype: of weights and computation
        against: what computes b
    """

    a: str
    b: str
    prompts: str | None = None
    num_prompts: int = 4
    length: int = 64
    seed: int = 0
    tolerance: float = 1e-4
    dtype: Literal["float32", "bfloat16"] = "float32"
    against: Literal["ours", "transformers"] = "ours"

    def __post_init__(self) -> None:
        """Refuse what compares nothing."""
        for name in ("num_prompts", "length"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")


def our_logits(weights: Weights, prompts: list[np.ndarray], dtype: Any) -> list[np.ndarray]:
    """Logits [T, V] of each prompt [T], float32, by our model."""
    compute = ComputeConfig(dtype=dtype, param_dtype=dtype, remat="none", attention="xla")
    rules = make_sharding_rules(MeshConfig(), jax.devices()[:1])
    model = transformer.abstract(weights.architecture, compute, rules)
    params = load_params(weights, model)

    @jax.jit
    def run(params: Any, tokens: Any, segments: Any) -> Any:
        whole = transformer.with_parameters(model, params)
        positions = jnp.arange(longest, dtype=jnp.int32)[None]
        return whole.logits(whole(tokens, positions, segments))[0]

    longest = max(len(prompt) for prompt in prompts)
    logits = []
    for prompt in prompts:
        rest = longest - len(prompt)
        tokens = np.pad(prompt, (0, rest)).astype(np.int32)[None]
        segments = np.pad(np.ones_like(prompt), (0, rest)).astype(np.int32)[None]
        logits.append(np.asarray(run(params, tokens, segments))[: len(prompt)])
    return logits


def transformers_logits(folder: str, prompts: list[np.ndarray], dtype: str) -> list[np.ndarray]:
    """Logits [T, V] of each prompt [T], float32, by transformers; needs the extra `torch`."""
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
    """Largest difference, as a share of the largest magnitude in `a`; infinite where a NaN is."""
    scale = max(float(np.abs(row).max()) for row in a)
    difference = max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))
    share = difference / scale if scale else difference
    return share if np.isfinite(share) else float("inf")


def check(options: Check) -> float:
    """The largest relative difference between the logits of `options.a` and `options.b`."""
    first = open_weights(options.a)
    prompts = _prompts(options, first)
    if options.against == "transformers":
        theirs = transformers_logits(options.b, prompts, options.dtype)
    else:
        theirs = our_logits(open_weights(options.b), prompts, options.dtype)
    ours = our_logits(first, prompts, options.dtype)
    if ours[0].shape != theirs[0].shape:
        raise UserError(
            f"{options.b}: vocab_size={theirs[0].shape[1]}: must be that of {options.a}, "
            f"{ours[0].shape[1]}; the two cannot be compared"
        )
    return largest_difference(ours, theirs)


def main(argv: Sequence[str]) -> int:
    """The command; 1 where the difference is over the tolerance."""
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
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights.aux_files)
    ids = [np.asarray(tokenizer(line)["input_ids"], np.int32) for line in lines if line.strip()]
    if not ids:
        raise UserError(f"prompts={options.prompts}: is empty; give one prompt a line")
    return ids


if __name__ == "__main__":
    run_command(main)
