"""Calibrate the time estimate of `jaxs1.plan` against published training runs.

    python -m benchmarks.calibration docs/plans.md

Estimates every run of `RUNS` in closed form, fits the assumptions of `jaxs1.planning.estimate` to
them, prints predicted and published times and writes them to the section "Calibration" of the file.
Exit status 1 if the assumptions in use are not the fitted ones.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jax.sharding import AbstractMesh

from jaxs1.config import parse, run_command
from jaxs1.model import transformer
from jaxs1.model.architecture import Architecture
from jaxs1.model.config import ComputeConfig
from jaxs1.model.rope import Rope
from jaxs1.model.sharding import MESH_AXES, ShardingRules
from jaxs1.model.transformer import Transformer
from jaxs1.planning import estimate
from jaxs1.planning.estimate import TimeEstimate, assumptions_for, estimate_time
from jaxs1.planning.targets import ACCELERATORS, Accelerator
from jaxs1.planning.workload import S1K_MEAN, Workload, draw_lengths, make_workload


def _shapes(vocab: int, width: int, mlp: int, layers: int, heads: int, kv: int) -> Architecture:
    """Only the shapes matter for the time; all heads are 128 wide."""
    return Architecture(
        vocab, width, mlp, layers, heads, kv, 128, 32768, Rope(1e4), 1e-5, False, False, False
    )


#: Llama 2, Llama 3.1, the scaled default model of MaxText, Qwen2.5.
SHAPES = {
    "Llama 2 7B": _shapes(32000, 4096, 11008, 32, 32, 32),
    "Llama 2 13B": _shapes(32000, 5120, 13824, 40, 40, 40),
    "Llama 2 70B": _shapes(32000, 8192, 28672, 80, 64, 8),
    "Llama 3.1 8B": _shapes(128256, 4096, 14336, 32, 32, 8),
    "Llama 3.1 70B": _shapes(128256, 8192, 28672, 80, 64, 8),
    "MaxText 32B": _shapes(32000, 8192, 28672, 32, 64, 64),
    "MaxText 64B": _shapes(32000, 8192, 28672, 64, 64, 64),
    "Qwen2.5 32B": _shapes(152064, 5120, 27648, 64, 40, 8),
}

SOURCES = {
    "titan": "github.com/pytorch/torchtitan, benchmarks/llama3_h100_202412_torchtitan.md, tables 1 "
    "and 3, `torch.compile` without Float8. H100 with 2.4 TB/s, limited to 500 W",
    "titan-a100": "github.com/pytorch/torchtitan, docs/performance.md (2024)",
    "a3": "github.com/AI-Hypercomputer/maxtext, MaxText/configs/a3/llama_2_7b (README.md, 1vm.sh)",
    "a3-mega": "github.com/AI-Hypercomputer/gpu-recipes, training/a3mega/llama-2-7b (example log)",
    "dgxc-2": "NVIDIA DGXC Benchmarking, MaxText Llama2 70B 25.01.1 (catalog.ngc.nvidia.com); "
    "recomputation not published, taken as all",
    "dgxc-3": "NVIDIA DGXC Benchmarking, MaxText Llama3 70B 25.02 (catalog.ngc.nvidia.com); "
    "recomputation not published, taken as all, the only choice that fits",
    "v5e": "github.com/AI-Hypercomputer/maxtext, MaxText/configs/v5e (README.md, 32b.sh)",
    "v5p": "github.com/AI-Hypercomputer/maxtext, MaxText/configs/v5p (README.md, 32b.sh, 64b.sh)",
    "v5p-70b": "maxtext.readthedocs.io, reference/models/tiering; MaxText/configs/v5p/"
    "llama2_70b.sh",
    "v6e": "github.com/AI-Hypercomputer/tpu-recipes, training/trillium, example logs; activations "
    "offloaded to the host",
    "s1": "s1, arXiv 2501.19393, appendix: 26 minutes for 315 steps; train/sft_multinode.sh. "
    "The lengths of the sequences are assumed",
}


@dataclass(frozen=True)
class PublishedRun:
    """A training run with a published speed.

    Args:
        source: key of `SOURCES`
        shapes: key of `SHAPES`
        accelerator: name in the table of accelerators
        data: data-parallel replicas
        fsdp: devices that share the parameters
        tensor: tensor-parallel devices
        length: sequence length [tokens]; None for s1K's
        sequences: sequences of a step for each device along data and fsdp
        remat: what is recomputed, in this project's words
        tokens: published speed [tokens/s for each device]
        tflops: published speed instead, as MaxText counts it [TFLOP/s for each device]
        seconds: published time of a step instead [s]
        fitted: whether the assumptions are fitted to it
    """

    source: str
    shapes: str
    accelerator: str
    data: int
    fsdp: int
    tensor: int
    length: int | None
    sequences: int
    remat: str
    tokens: float | None = None
    tflops: float | None = None
    seconds: float | None = None
    fitted: bool = True

    @property
    def devices(self) -> int:
        """Number of devices."""
        return self.data * self.fsdp * self.tensor

    @property
    def published(self) -> float:
        """Published seconds of a step."""
        if self.seconds is not None:
            return self.seconds
        assert self.length is not None
        tokens = self.tokens
        if tokens is None:
            assert self.tflops is not None
            tokens = self.tflops * 1e12 / maxtext_flops(SHAPES[self.shapes], self.length)
        return self.sequences * self.length / self.tensor / tokens

    @cached_property
    def _model(self) -> Transformer:
        mesh = AbstractMesh((self.data, self.fsdp, 1, 1, self.tensor), MESH_AXES)
        rules = ShardingRules(mesh)  # type: ignore[arg-type]  # only sizes are read
        attention = "cudnn" if self.kind.platform == "gpu" else "splash"
        compute = ComputeConfig(remat=self.remat, attention=attention)  # type: ignore[arg-type]
        return transformer.abstract(SHAPES[self.shapes], compute, rules, max_segments=1)

    def predict(self, products: float | None = None) -> TimeEstimate:
        """The closed-form estimate of a step; products: another share of the peak to assume."""
        assumptions = assumptions_for(self.kind)
        if products is not None:
            assumptions = assumptions._replace(products=products)
        return estimate_time(self._model, self.kind, self._workload, assumptions=assumptions)

    @property
    def kind(self) -> Accelerator:
        """The accelerator."""
        return ACCELERATORS[self.accelerator]

    @cached_property
    def _workload(self) -> Workload:
        rows = self.sequences * self.data * self.fsdp
        if self.length is None:  # one sequence in each row: the longest sets the pace
            return make_workload(
                draw_lengths(S1K_MEAN, 32768).tolist(), batch_size=rows, epochs=5, steps=None,
                gradient_accumulation_steps=1, rows=rows, multiple=1,
            )  # fmt: skip
        tokens = rows * self.length
        return Workload(1, 1, rows, (self.length,), tokens, tokens * (self.length + 1) / 2)


RUNS = (
    PublishedRun("a3", "Llama 2 7B", "h100", 1, 8, 1, 4096, 4, "none", tflops=492),
    PublishedRun("a3-mega", "Llama 2 7B", "h100", 32, 8, 1, 4096, 4, "none", tokens=10922.973),
    PublishedRun("dgxc-2", "Llama 2 70B", "h100", 1, 64, 1, 4096, 2, "full", seconds=7.908),
    PublishedRun("dgxc-3", "Llama 3.1 70B", "h100", 1, 128, 1, 8192, 2, "full", seconds=15.563),
    PublishedRun("dgxc-3", "Llama 3.1 70B", "h100", 16, 128, 1, 8192, 2, "full", seconds=15.898),
    PublishedRun("titan-a100", "Llama 3.1 8B", "a100", 1, 64, 1, 8192, 1, "attention", tokens=2973),
    PublishedRun("titan-a100", "Llama 3.1 70B", "a100", 1, 64, 1, 8192, 1, "full", tokens=331),
    PublishedRun("titan-a100", "Llama 2 13B", "a100", 1, 64, 1, 4096, 2, "none", tokens=2162),
    PublishedRun("titan-a100", "Llama 2 70B", "a100", 1, 64, 1, 4096, 2, "full", tokens=353),
    PublishedRun("v5p", "MaxText 32B", "v5p", 1, 16, 4, 2048, 28, "none", tflops=328),
    PublishedRun("v5p", "MaxText 64B", "v5p", 1, 16, 4, 2048, 12, "none", tflops=323),
    PublishedRun("v5p-70b", "Llama 2 70B", "v5p", 1, 256, 1, 4096, 4, "attention", tokens=692),
    PublishedRun("v6e", "Llama 3.1 8B", "v6e", 1, 8, 1, 8192, 3, "attention", tokens=7138.89),
    PublishedRun("v6e", "Llama 3.1 8B", "v6e", 1, 256, 1, 8192, 4, "attention", tokens=7207.336),
    PublishedRun("v6e", "Llama 3.1 70B", "v6e", 1, 32, 1, 8192, 2, "attention", tokens=920.965),
    PublishedRun("v6e", "Llama 3.1 70B", "v6e", 1, 256, 1, 8192, 5, "attention", tokens=960.248),
    PublishedRun("v6e", "Llama 2 70B", "v6e", 1, 256, 1, 4096, 3, "attention", tokens=905.021),
    PublishedRun("v5e", "MaxText 32B", "v5e", 1, 256, 1, 2048, 4, "full", tflops=132, fitted=False),
    PublishedRun(
        "titan", "Llama 3.1 8B", "h100", 1, 8, 1, 8192, 2, "attention", tokens=6667, fitted=False
    ),
    PublishedRun(
        "titan", "Llama 3.1 8B", "h100", 1, 128, 1, 8192, 2, "attention", tokens=6514, fitted=False
    ),
    PublishedRun(
        "s1", "Qwen2.5 32B", "h100", 1, 16, 1, None, 1, "full", seconds=26 * 60 / 315, fitted=False
    ),
)


def maxtext_flops(a: Architecture, length: int) -> float:
    """FLOPs of a token as MaxText's logs count them: 6 for each weight, all pairs of attention."""
    width = a.num_heads * a.head_dim
    layer = 2 * a.hidden_size * (width + a.num_kv_heads * a.head_dim)
    layer += 3 * a.hidden_size * a.intermediate_size
    weights = a.num_layers * layer + a.vocab_size * a.hidden_size
    return 6 * weights + 12 * a.num_layers * length * width


def fit(runs: Sequence[PublishedRun]) -> dict[str, float]:
    """The share of the peak in matrix products of each kind of device, in steps of 0.01.

    Minimises the sum of |log(predicted / published)|; the other assumptions are kept.
    """
    shares = np.arange(40, 100) / 100
    errors: dict[str, np.ndarray] = {}
    for run in runs:
        parts = run.predict(1.0)  # at the full peak
        times = parts.total - parts.products + parts.products / shares
        kind = run.kind.device_kind
        errors[kind] = errors.get(kind, 0.0) + np.abs(np.log(times / run.published))
    return {kind: float(shares[error.argmin()]) for kind, error in errors.items()}


def leave_one_out(runs: Sequence[PublishedRun]) -> list[float]:
    """Errors of runs predicted with the share fitted to the other runs of their accelerator."""
    errors = []
    for i, run in enumerate(runs):
        share = fit([*runs[:i], *runs[i + 1 :]])[run.kind.device_kind]
        errors.append(run.predict(share).total / run.published - 1)
    return errors


def spread(platform: str) -> tuple[float, float]:
    """Smallest and largest deviation of published from predicted times, rounded outwards."""
    runs = [run for run in RUNS if run.kind.platform == platform]
    deviations = [run.published / run.predict().total - 1 for run in runs]
    return math.floor(min(deviations) * 100) / 100, math.ceil(max(deviations) * 100) / 100


def section() -> str:
    """The section "Calibration" of docs/plans.md."""
    fitted = [run for run in RUNS if run.fitted]
    errors = [run.predict().total / run.published - 1 for run in RUNS]
    of_fitted = [run.predict().total / run.published - 1 for run in fitted]
    held_out = leave_one_out(fitted)
    numbers = {source: i for i, source in enumerate(dict.fromkeys(r.source for r in RUNS), 1)}
    names = {a.device_kind: name for name, a in ACCELERATORS.items()}
    rows = "\n".join(_row(run, error, numbers) for run, error in zip(RUNS, errors, strict=True))
    sources = "\n".join(f"{i}. {SOURCES[source]}" for source, i in numbers.items())
    return PAGE.format(
        rows=rows,
        median=_median(errors),
        count=len(RUNS),
        count_fitted=len(fitted),
        median_fitted=_median(of_fitted),
        median_held_out=_median(held_out),
        largest_held_out=max(map(abs, held_out)),
        gpu=_range("gpu"),
        tpu=_range("tpu"),
        products=", ".join(f"{names[kind]} {x:.0%}" for kind, x in estimate.PRODUCTS.items()),
        attention=estimate.ATTENTION,
        bandwidth=estimate.BANDWIDTH,
        overlap=estimate.OVERLAP,
        sources=sources,
    )


PAGE = """## Calibration

Step times of published runs, and what the closed form of `jaxs1.planning.estimate` predicts for
them (`python -m benchmarks.calibration docs/plans.md` writes this section).

| model | devices | data x fsdp x tensor | tokens | recomputes | predicted s | published s | error \
| source |
|---|---|---|---|---|---|---|---|---|
{rows}

**Median error {median:.0%} over all {count} runs.**
The {count_fitted} runs used for the fit have {median_fitted:.0%}. If each of these is predicted
from the other runs of its accelerator, the median error is {median_held_out:.0%} and the largest
{largest_held_out:.0%}.
Published times deviate from the estimates by {gpu} on GPUs and {tpu} on TPUs; `jaxs1.plan` prints
this range with each estimate.

Only one assumption is fitted: the share of the peak FLOP/s that matrix products reach on each
accelerator. It minimises the sum of |log(predicted / published)|:
{products}.
The others are kept, because these runs do not determine them: fused attention at {attention:.0%} of
the peak, memory at {bandwidth:.0%} of its bandwidth, and {overlap:.0%} of the communication hidden,
as in the compiled schedule of the 32B on 16 H100.

Not used for the fit:

* torchtitan on H100: the GPUs have slower memory and were limited to 500 W.
* s1: the lengths of its sequences are not published, and the longest of 16 sets the pace. A
  distribution narrower than the assumed one would explain the difference.
* v5e: it would need products at over 90 % of the peak, so the stored script is probably not the one
  that was measured.

H200 takes the share of the H100, RTX 4090 that of the A100, v5e that of the v5p.

Sources:

{sources}
"""


def _row(run: PublishedRun, error: float, numbers: dict[str, int]) -> str:
    length = "s1K" if run.length is None else f"{run.length:,}"
    sequences = run.sequences * run.data * run.fsdp
    kept = {"full": "all", "attention": "not attention", "none": "nothing"}[run.remat]
    cells = [
        run.shapes + ("" if run.fitted else " (not used)"),
        f"{run.devices} x {run.accelerator}",
        f"{run.data} x {run.fsdp} x {run.tensor}",
        f"{sequences:,} x {length}",
        kept,
        f"{run.predict().total:.2f}",
        f"{run.published:.2f}",
        f"{error:+.0%}",
        str(numbers[run.source]),
    ]
    return "| " + " | ".join(cells) + " |"


def _range(platform: str) -> str:
    low, high = estimate.SPREAD[platform]
    return f"{low:+.0%} to {high:+.0%}"


def _median(errors: Iterable[float]) -> float:
    return statistics.median(map(abs, errors))


@dataclass(frozen=True)
class Options:
    """Calibrate the time estimate of jaxs1.plan against published training runs.

    Args:
        output: Markdown file whose section "Calibration" is replaced
    """

    output: str


def main(argv: Sequence[str]) -> int:
    """The command; returns 1 if the assumptions in use are not the fitted ones."""
    options = parse(
        Options, argv, command="python -m benchmarks.calibration", positionals=("output",)
    )
    file, text = Path(options.output), section()
    print(text)
    file.write_text(replace_section(file.read_text(), text))
    wrong = differences()
    print("\n".join(wrong) or "the assumptions in use are the fitted ones")
    return 1 if wrong else 0


def replace_section(page: str, text: str) -> str:
    """The page with its section "Calibration" replaced, or appended if it has none."""
    before, _, after = page.partition("\n## Calibration\n")
    _, heading, rest = after.partition("\n## ")
    return f"{before.rstrip()}\n\n{text}{heading}{rest}"


def differences() -> list[str]:
    """Constants of `jaxs1.planning.estimate` that differ from the fitted ones."""
    checks: list[tuple[str, object, object]] = [
        (f"PRODUCTS[{kind!r}]", estimate.PRODUCTS.get(kind), share)
        for kind, share in fit([run for run in RUNS if run.fitted]).items()
    ]
    checks += [(f"SPREAD[{p!r}]", used, spread(p)) for p, used in estimate.SPREAD.items()]
    return [f"{name} is {used}, fitted {new}" for name, used, new in checks if used != new]


if __name__ == "__main__":
    run_command(main)
