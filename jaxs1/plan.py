"""Plan a run without the hardware: does it fit, how long does it take, what does it cost?

    python -m jaxs1.plan --config s1_32b --target h100:2x8
    python -m jaxs1.plan --config grpo_32b --target h100:2x8
    python -m jaxs1.plan --decode --config s1_32b --target h100:1x1

The first compiles the train step of `jaxs1.train` ahead of time for the target, the second the
roll-out and the train step of `jaxs1.grpo`, the third the decode loop of `jaxs1.generate`. Memory
and communication are the compiler's figures; the time is a roofline estimate over them. None reads
data or weights. Needs `pip install 'jaxs1[plan]'`, which brings the compilers, but no accelerator
and no driver. Any field of a recipe can be overridden, as in `jaxs1.train` and `jaxs1.grpo`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import yaml

from jaxs1.config import UserError, find_recipe, one_line, parse, run_command
from jaxs1.model.architecture import Architecture, read_config
from jaxs1.planning import decode, grpo, report
from jaxs1.planning.planned_run import PlannedRun, Sequences, make_planned_run
from jaxs1.planning.report import Outcome
from jaxs1.planning.search import alternatives
from jaxs1.planning.targets import Target, parse_target
from jaxs1.planning.topology import make_devices, use_only_cpu
from jaxs1.planning.workload import S1K_EXAMPLES, S1K_MEAN
from jaxs1.rl.config import GrpoConfig
from jaxs1.storage import check_output, write_text
from jaxs1.training.config import TrainConfig

COMMAND = "python -m jaxs1.plan"
#: Most layouts that a search compiles.
TRIES = 6
#: Model that decoding is planned for if none is given.
DEFAULT_MODEL = "qwen2.5-32b"


@dataclass(frozen=True)
class Plan:
    """Plan a training run: memory, communication, time and cost, without the hardware.

    Any field of a training recipe can be given as well, for example --compute.remat full.

    Args:
        target: Accelerators to plan for: h100, h200, a100 or rtx4090:NODESxGPUS, v5p:2x2x4,
            v5e or v6e:4x8, cpu:8
        decode: Plan decoding instead of training; `--decode --help` lists its options
        price: Price of a device-hour [$]; null uses a typical on-demand price of 2025
        rows: Rows of a micro-batch; null uses the recipe's
        length: Length of every row [tokens]; null packs sequences of random lengths
        mean_length: Average length of a sequence [tokens]; the default is s1K's
        examples: Number of training sequences; the default is s1K's
        layers: Number of layers to compile; null compiles all
        changes: Number of changes to the recipe to compile and compare
        search: Compile other layouts, fastest first, until one fits
        output: JSON file to write all figures to
    """

    target: str
    decode: bool = False
    price: float | None = None
    rows: int | None = None
    length: int | None = None
    mean_length: float = S1K_MEAN
    examples: int = S1K_EXAMPLES
    layers: int | None = None
    changes: int = 3
    search: bool = False
    output: str | None = None

    def __post_init__(self) -> None:
        """Check that numbers are positive."""
        for name in ("price", "rows", "length", "mean_length", "examples", "layers"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name}={value}: must be positive; give a value above 0")
        if self.changes < 0:
            raise UserError(f"changes={self.changes}: must be 0 or more")


@dataclass(frozen=True)
class DecodePlan:
    """Plan decoding: memory, copies, kernel launches and the fastest possible step.

    With --config, the model is the one of a training recipe.

    Args:
        target: Accelerators to plan for: h100, h200, a100 or rtx4090:NODESxGPUS, v5p:2x2x4,
            v5e or v6e:2x4, cpu:8
        model: Hugging Face folder or hub id whose config.json gives the shapes
        architecture: Shapes of the model instead: a config.json, or a name such as qwen2.5-32b
            (the default without --model and --config)
        tensor: Devices that share a copy of the model; the target's other devices hold further
            copies. null: all devices share one
        impl: Implementation of the decode step
        weights: int8 plans with quantized matrices, as generate's --weights
        sequences: Number of sequences decoded at the same time
        context: Length that each sequence can reach [tokens], prompt included
        steps: Decode steps between two synchronisations with the host
        layers: Number of layers to compile; null compiles all
        output: JSON file to write all figures to
    """

    target: str = "h200:1x1"
    model: str | None = None
    architecture: str | None = None
    tensor: int | None = None
    impl: Literal["xla", "triton", "pallas"] = "xla"
    weights: Literal["auto", "int8"] = "auto"
    sequences: int = 8
    context: int = 4096
    steps: int = 32
    layers: int | None = None
    output: str | None = None

    def __post_init__(self) -> None:
        """Check that numbers are positive."""
        for name in ("tensor", "sequences", "context", "steps", "layers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value}: must be at least 1")


@dataclass(frozen=True)
class GrpoPlan:
    """Plan reinforcement learning: memory of the roll-out and of the train step, apart.

    Any field of the recipe can be given as well, for example --limits.max_num_seqs 32.

    Args:
        target: Accelerators to plan for: h100, h200, a100 or rtx4090:NODESxGPUS, cpu:8
        layers: Number of layers to compile; null compiles all
        output: JSON file to write all figures to
    """

    target: str
    layers: int | None = None
    output: str | None = None

    def __post_init__(self) -> None:
        """Check that numbers are positive."""
        if self.layers is not None and self.layers < 1:
            raise UserError(f"layers={self.layers}: must be at least 1")


def main(argv: Sequence[str]) -> int:
    """The command; returns 1 if the run does not fit."""
    logging.getLogger("jax").setLevel(logging.ERROR)
    use_only_cpu()
    decoding = [word for word in argv if word not in ("--decode", "--decode=true")]
    if len(decoding) < len(argv):
        return _plan_decoding(decoding)
    return _plan_grpo(argv) if _is_grpo(argv) else _plan_training(argv)


def _plan_training(argv: Sequence[str]) -> int:
    own, recipe = _split(argv, Plan)
    options = parse(Plan, own, command=COMMAND)
    config = parse(TrainConfig, recipe, command=COMMAND)
    if options.output:
        check_output(options.output)
    outcomes = plan(options, config)
    _write(options.output, report.to_json(outcomes))
    return 0 if outcomes[0].fits else 1


def _plan_decoding(argv: Sequence[str]) -> int:
    own, recipe = _split(argv, DecodePlan)
    options = parse(DecodePlan, own, command=f"{COMMAND} --decode")
    model, shapes = options.model, options.architecture
    if recipe:
        config = parse(TrainConfig, recipe, command=f"{COMMAND} --decode")
        if model is None and shapes is None:
            model, shapes = config.model, config.architecture
    elif model is None and shapes is None:
        shapes = DEFAULT_MODEL
    if options.output:
        check_output(options.output)
    program, target = plan_decoding(options, *find_architecture(model, shapes))
    _write(options.output, dataclasses.asdict(program))
    return 0 if program.peak <= target.available else 1


def _is_grpo(argv: Sequence[str]) -> bool:
    """Whether a recipe has fields that only those of `jaxs1.grpo` have."""
    words = [part for word in argv for part in word.split("=", 1)]
    names = {word[2:].partition(".")[0] for word in words if word.startswith("--")}
    # where a recipe cannot be read, parsing it explains what is wrong
    with contextlib.suppress(OSError, TypeError, ValueError, yaml.YAMLError):
        for recipe in (value for word, value in pairwise(words) if word == "--config"):
            names |= set(yaml.safe_load(find_recipe(recipe).read_text()))
    grpo, training = ({f.name for f in dataclasses.fields(c)} for c in (GrpoConfig, TrainConfig))
    return bool(names & (grpo - training) - {"rows"})  # --rows is an option of `Plan`


def _plan_grpo(argv: Sequence[str]) -> int:
    own, recipe = _split(argv, GrpoPlan)
    options = parse(GrpoPlan, own, command=COMMAND)
    # a plan reads no questions
    config = parse(GrpoConfig, ["--task", "none", *recipe], command=COMMAND)
    if options.output:
        check_output(options.output)
    target = parse_target(options.target)
    architecture, origin = find_architecture(config.model, config.architecture)
    architecture = _first_layers(architecture, options.layers)
    run = grpo.plan_grpo(config, architecture, target, make_devices(target))
    report.print_grpo(run, origin)
    programs = grpo.compile_grpo(run)
    report.print_grpo_memory(run, programs)
    _write(options.output, report.grpo_to_json(run, programs))
    return 0 if programs.fits(target.available) else 1


def plan(options: Plan, config: TrainConfig) -> list[Outcome]:
    """Compile a recipe and alternatives to it, and print the results; the recipe comes first.

    Raises:
        UserError: one line that names the field, its value, the constraint and the remedy.
    """
    target = parse_target(options.target)
    architecture, origin = find_architecture(config.model, config.architecture)
    architecture = _first_layers(architecture, options.layers)
    if options.rows:
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, rows=options.rows)
        )
    if target.accelerator.platform == "cpu":  # no recipe's mesh is made for a laptop
        config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, fsdp=-1))
    make = partial(
        make_planned_run,
        architecture=architecture,
        target=target,
        devices=make_devices(target),
        sequences=Sequences(options.mean_length, options.examples, options.length),
    )
    run = make(config)
    price = target.accelerator.price if options.price is None else options.price
    report.print_run(run, origin)
    first = _compile(run, price)
    report.print_outcome(first)
    outcomes = [first]
    others = alternatives(run, make, aspects=3 if options.search else 1)
    for other in others[: TRIES if options.search else options.changes]:
        outcome = _compile(other, price)
        report.print_change(outcome, first)
        outcomes.append(outcome)
        if options.search and outcome.fits:
            break
    return outcomes


def plan_decoding(
    options: DecodePlan, architecture: Architecture, origin: str
) -> tuple[decode.DecodeProgram, Target]:
    """Compile the decode loop and print what the compiler reports.

    Args:
        options: settings of the loop
        architecture: shapes of the model
        origin: where the shapes come from

    Raises:
        UserError: one line that names the field, its value, the constraint and the remedy.
    """
    target = parse_target(options.target)
    architecture = _first_layers(architecture, options.layers)
    devices = make_devices(target)
    tensor = options.tensor or len(devices)
    if len(devices) % tensor:
        raise UserError(
            f"tensor={tensor}: must divide the {len(devices)} devices of {target}; choose a divisor"
        )
    program = decode.compile_decoding(
        architecture,
        target,
        devices[:tensor],
        impl=options.impl,
        int8=options.weights == "int8",
        sequences=options.sequences,
        context=options.context,
        steps=options.steps,
    )
    copies = f", {len(devices) // tensor} copies" if tensor < len(devices) else ""
    work = f"{options.sequences} sequences of {options.context:,} tokens{copies}, "
    work += f"{options.steps} steps"
    impl = options.impl if options.weights == "auto" else f"{options.impl}, int8 weights"
    report.print_decoding(program, architecture, origin, target, f"{impl}, {work}")
    return program, target


def find_architecture(model: str | None, architecture: str | None) -> tuple[Architecture, str]:
    """Shapes of a model, read without its weights, and the file they come from.

    Args:
        model: Hugging Face folder or hub id; the config.json of a folder has precedence
        architecture: a config.json, or the name of one of `configs/models`; precedes the hub

    Raises:
        UserError: none of them can be read.
    """
    if model and Path(model).is_dir():
        source = str(Path(model) / "config.json")
    elif architecture is not None:
        source = str(find_recipe(architecture, setting="architecture"))
    else:
        source = _fetch_config(str(model))
    values = read_config(source)
    values.setdefault("vocab_size", 151936)  # an architecture may leave it to the tokenizer
    return Architecture.from_hf(values, source), source


def _fetch_config(model: str) -> str:
    from huggingface_hub import hf_hub_download

    try:
        return hf_hub_download(model, "config.json")
    except Exception as error:
        raise UserError(
            f"model={model}: its config.json cannot be fetched ({one_line(error)}); "
            "give --architecture configs/models/NAME.json"
        ) from None


def _first_layers(architecture: Architecture, layers: int | None) -> Architecture:
    return dataclasses.replace(architecture, num_layers=layers or architecture.num_layers)


def _compile(run: PlannedRun, price: float) -> Outcome:
    """Compile a step of average length, and one of the longest rows, which must fit too."""
    typical = run.compile(run.typical)
    longest: Any = None
    if run.workload.longest > run.typical and not typical.refusal:
        longest = run.compile(run.workload.longest)
    return Outcome(run, typical, longest, price)


def _split(argv: Sequence[str], schema: type) -> tuple[list[str], list[str]]:
    """Arguments that are fields of `schema`, and the others, which belong to the recipe."""
    types = {f.name: f.type for f in dataclasses.fields(schema)}
    own: list[str] = []
    recipe: list[str] = []
    current = recipe
    for position, word in enumerate(argv):
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            current = own if name in types or name == "help" else recipe
            current.append(word)
            last = position + 1 == len(argv) or argv[position + 1].startswith("--")
            if types.get(name) == "bool" and not value and last:
                current.append("true")  # a switch without a value
        else:
            current.append(word)
    return own, recipe


def _write(path: str | None, figures: dict[str, Any]) -> None:
    if path:
        write_text(Path(path), json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    run_command(main)
