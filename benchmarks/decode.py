"""Decoding speed compared with transformers: python -m benchmarks.decode --tokenizer DIR

One random model of Qwen2.5-0.5B's shape, one machine, one run. The contenders take turns; figures
are medians over rounds and ratios are taken within a round. Both must decode the same tokens first
(float32, greedy). The embedding of <|im_start|> is scaled up, which makes the model try to end its
thinking about once in 30 tokens. The last line is JSON.

* decode: 64-token prompts, a fixed number of new tokens; `bare` is the loop without the controller.
* Waits: s1's harness inside the compiled loop, and driven from outside over the engine of jaxs1 and
  over transformers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from jaxs1.decoding.decode_state import table
from jaxs1.decoding.engine import Engine
from jaxs1.decoding.loading import EngineConfig, load_engine
from jaxs1.decoding.params import Delimiters, Request, ThinkingParams
from jaxs1.decoding.scheduler import Limits
from jaxs1.model import decode

PROMPT = 64
BUDGET, ANSWER = 96, 16  # maximum tokens of a round of thinking and of an answer
SCALE = 2.2  # of the embedding of <|im_start|>
CONFIG = Path(__file__).parents[1] / "configs" / "models" / "qwen2.5-0.5b.json"

Ids = list[int]


def make_model(layers: int | None, tokenizer: Any, folder: Path) -> Any:
    """A random transformers model, also saved to `folder` with its tokenizer."""
    settings = json.loads(CONFIG.read_text())
    settings["num_hidden_layers"] = layers or settings["num_hidden_layers"]
    settings["max_position_embeddings"] = 2048
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**settings)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
        model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("<|im_start|>")] *= (
            SCALE
        )
    model.bfloat16().save_pretrained(folder)  # as published checkpoints are
    tokenizer.save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def torch_generate(model: Any, prompts: Sequence[Ids], tokens: int, ends: Ids) -> list[Ids]:
    """transformers.generate, greedy, a left-padded batch; the continuation of each prompt."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=ends or None,
            pad_token_id=0,
        )
    rows = out[:, longest:].tolist()
    firsts = [next((i + 1 for i, t in enumerate(row) if t in ends), len(row)) for row in rows]
    return [row[:end] for row, end in zip(rows, firsts, strict=True)]


def jaxs1_generate(engine: Engine, prompts: Sequence[Ids], tokens: int, ends: Ids) -> list[Ids]:
    """Greedy generation with jaxs1; the continuation of each prompt."""
    stops = tuple(engine.tokenizer.convert_ids_to_tokens(ends)) or ("<|fim_pad|>",)
    plain = ThinkingParams(
        mode="off",
        max_answer_tokens=tokens,
        min_answer_tokens=1,
        delimiters=Delimiters(stop=stops),
    )
    out = dict(engine.run([Request(p, plain) for p in prompts]))
    return [out[i][0].tokens for i in range(len(prompts))]


def outside(
    generate: Callable[..., list[Ids]], prompts: Sequence[Ids], waits: int, ids: dict[str, Ids]
) -> list[Ids]:
    """s1's harness from outside: one call per round, which prefills everything again."""
    kept: list[Ids] = [[] for _ in prompts]
    cut = [False] * len(prompts)
    active = list(range(len(prompts)))
    for r in range(waits + 1):
        rounds = generate([[*prompts[i], *kept[i]] for i in active], BUDGET, ids["ends"])
        still = []
        for i, out in zip(active, rounds, strict=True):
            ended = out[-1] in ids["ends"]
            kept[i] += out[:-1] if ended else out
            cut[i] = not ended
            if ended and r < waits:
                kept[i] += ids["wait"]
                still.append(i)
        active = still
        if not active:
            break
    kept = [k[:BUDGET] for k in kept]
    closes = [ids["cut"] if c else ids["close"] for c in cut]
    full = [[*p, *k, *c] for p, k, c in zip(prompts, kept, closes, strict=True)]
    answers = generate(full, ANSWER, [])
    return [k + c + a for k, c, a in zip(kept, closes, answers, strict=True)]


def inside(engine: Engine, prompts: Sequence[Ids], waits: int) -> list[Ids]:
    """The same harness inside the compiled loop."""
    thinking = ThinkingParams(
        mode="s1_harness",
        max=BUDGET,
        num_waits=waits,
        max_answer_tokens=ANSWER,
        min_answer_tokens=1,
    )
    out = dict(engine.run([Request(p, thinking) for p in prompts]))
    return [out[i][0].tokens for i in range(len(prompts))]


def bare_loop(engine: Engine, tokens: int, rows: int) -> Callable[[], None]:
    """The loop without controller and sampling settings: only the model and arg-max."""
    pages = -(-(PROMPT + tokens) // 64)
    table_BM = table([list(range(1 + b * pages, 1 + (b + 1) * pages)) for b in range(rows)], rows,
                     1 << (pages - 1).bit_length())  # fmt: skip
    vocabulary, impl = len(engine.tokenizer), engine.compiled.impl

    def loop(params: Any, cache: Any) -> Any:
        def step(carry: Any) -> Any:
            i, cache, token_B, position_B = carry
            x, cache = decode.forward(
                engine.model,
                params,
                cache,
                token_B[:, None],
                position_B[:, None],
                table_BM,
                impl=impl,
            )
            logits = decode.logits(engine.model, params, x[:, 0], impl=impl)[:, :vocabulary]
            return i + 1, cache, logits.argmax(-1).astype(jnp.int32), position_B + 1

        start = (0, cache, jnp.ones(rows, jnp.int32), jnp.full(rows, PROMPT, jnp.int32))
        return jax.lax.while_loop(lambda c: c[0] < engine.limits.decode_steps, step, start)[1:3]

    run = jax.jit(loop, donate_argnums=1)

    def timed() -> None:
        for _ in range(tokens // engine.limits.decode_steps):
            engine.cache, last = run(engine.params, engine.cache)
            jax.block_until_ready(last)

    return timed


def race(
    contenders: dict[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each contender, taking turns, and its result in a warm-up round."""
    results = {name: run() for name, run in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds, results


def ratio(slower: list[float], faster: list[float]) -> float:
    """Median over rounds of the speed-up."""
    return statistics.median(s / f for s, f in zip(slower, faster, strict=True))


def compare_decode(engine: Engine, models: dict[str, Any], batch: int, tokens: int, rounds: int):
    """Decode a fixed number of new tokens; prints a table and returns its figures."""
    prompts = make_prompts(engine, batch)
    forced = ThinkingParams(max=tokens - 16 - 3, max_answer_tokens=16, min_answer_tokens=16)
    contenders: dict[str, Callable[[], Any]] = {
        "jaxs1, forcing off": partial(jaxs1_generate, engine, prompts, tokens, []),
        "jaxs1, forcing on": lambda: dict(engine.run([Request(p[:-2], forced) for p in prompts])),
        "jaxs1, bare loop": bare_loop(engine, tokens, batch),
    }
    for name, model in models.items():
        contenders[name] = partial(torch_generate, model, prompts, tokens, [])
    seconds, _ = race(contenders, rounds)
    print(f"\nbatch {batch}: {PROMPT} prompt tokens, {tokens} new tokens each")
    figures = {}
    for name, values in seconds.items():
        speed = batch * tokens / statistics.median(values)
        speedup = ratio(values, seconds["jaxs1, forcing off"])
        figures[name] = {"tokens_per_s": speed, "jaxs1_is_faster_by": speedup}
        print(f"  {name:28}{speed:10,.1f} tokens/s   jaxs1 is {speedup:5.2f} x as fast")
    return figures


def compare_waits(engine: Engine, model: Any, ids: dict[str, Ids], batch: int, rounds: int):
    """Three methods of adding Waits; prints a table and returns its figures."""
    prompts = make_prompts(engine, batch)
    ready = [[*p, *ids["start"]] for p in prompts]
    print(f"\nWaits, batch {batch}: seconds (tokens), rounds of at most {BUDGET} tokens")
    print(f"  {'N':>2}{'inside':>16}{'outside, jaxs1':>18}{'outside, transformers':>24}")
    figures = []
    for waits in (0, 1, 2, 4):
        methods: dict[str, Callable[[], list[Ids]]] = {
            "inside": partial(inside, engine, prompts, waits),
            "outside_jaxs1": partial(outside, partial(jaxs1_generate, engine), ready, waits, ids),
            "outside_transformers": partial(
                outside, partial(torch_generate, model), ready, waits, ids
            ),
        }
        seconds, results = race(methods, rounds)
        counts = {name: sum(map(len, rows)) for name, rows in results.items()}
        equal = sum(a == b for a, b in zip(*list(results.values())[:2], strict=True))
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        cells = [f"{medians[n]:8.2f} ({counts[n]:,})" for n in methods]
        print(f"  {waits:2}{cells[0]:>16}{cells[1]:>18}{cells[2]:>24}   equal ids {equal}/{batch}")
        figures.append({"waits": waits, "seconds": medians, "tokens": counts, "equal": equal})
    return figures


def make_prompts(engine: Engine, batch: int) -> list[Ids]:
    """Random token ids."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 150_000, (batch, PROMPT)).tolist()


def check_tokens(engine: Engine, model: Any) -> None:
    """Check that both decode the same tokens."""
    prompts = make_prompts(engine, 4)
    found = jaxs1_generate(engine, prompts, 32, [])
    expected = torch_generate(model, prompts, 32, [])
    agree = sum(a == b for a, b in zip(found, expected, strict=True))
    print(f"greedy tokens equal to transformers' on {agree} of {len(prompts)} prompts")
    if agree < len(prompts):
        raise SystemExit(
            "jaxs1 and transformers decode different tokens; timings would be meaningless"
        )


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--tokenizer",
        default="Qwen/Qwen2.5-0.5B-Instruct",
        help="Hugging Face folder or hub id",
    )
    parser.add_argument("--layers", type=int, help="number of layers of the model; default: all 24")
    parser.add_argument(
        "--tokens", type=int, default=64, help="number of new tokens, a multiple of 32"
    )
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="batch sizes")
    parser.add_argument("--impl", default="auto", help="implementation of the decode step")
    parser.add_argument(
        "--waits_batch", type=int, default=4, help="batch size of the table of Waits; 0 omits it"
    )
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.tokenizer)
    with tempfile.TemporaryDirectory() as name:
        model = make_model(arguments.layers, tokenizer, Path(name))
        limits = Limits(
            max_num_seqs=max(*arguments.batches, arguments.waits_batch), max_seq_len=1024
        )
        impl = arguments.impl
        loaded = load_engine(EngineConfig(name, dtype="float32", impl=impl, limits=limits))
    engine: Any = loaded.engine
    print(loaded.description.partition(": ")[2])
    check_tokens(engine, model)

    def plain(text: str) -> Ids:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    ends = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    close = plain("<|im_start|>answer")
    ids = {
        "start": plain("<|im_start|>think"),
        "ends": ends,
        "wait": plain("Wait"),
        "close": close,
        "cut": plain("\n") + plain("<|im_start|>answer\nFinal Answer:"),
    }
    result: dict[str, Any] = {"threads": torch.get_num_threads()}
    bf16 = transformers.AutoModelForCausalLM.from_config(model.config).to(torch.bfloat16).eval()
    models = {"transformers, float32": model, "transformers, bfloat16": bf16}
    for batch in arguments.batches:
        result[f"decode_{batch}"] = compare_decode(
            engine, models, batch, arguments.tokens, arguments.rounds
        )
    if batch := arguments.waits_batch:
        result["waits"] = compare_waits(engine, model, ids, batch, arguments.rounds)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
