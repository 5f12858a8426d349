"""Does a recipe fit, how long does it take, what does it cost? Compiled for hardware not here.

    python -m jaxs1.plan --config configs/s1_32b.yaml --target h100:2x8

With --decode it is the decode chunk of `jaxs1.generate` (see `jaxs1.planning.decode`).
The real train step of `jaxs1.train` is compiled for devices that exist only in name; memory and
communication are what the compiler reports, time is a roofline over them. Needs
`pip install 'jaxs1[plan]'`, no accelerator and no driver. Every field of a recipe can be given, as
in `jaxs1.train`; no data and no weights are read.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jaxs1.config import UserError, one_line, parse, run_command
from jaxs1.model.architecture import Architecture, read_config
from jaxs1.planning import decode, report
from jaxs1.planning.case import Case, Sequences, make_case
from jaxs1.planning.report import Outcome
from jaxs1.planning.search import alternatives
from jaxs1.planning.targets import parse_target
from jaxs1.planning.topology import make_devices, use_only_cpu
from jaxs1.planning.workload import S1K_EXAMPLES, S1K_MEAN
from jaxs1.training.config import TrainConfig

#: How many layouts a search compiles at most.
TRIES = 6


@dataclass(frozen=True)
class Plan:
    """Plan a training run for hardware that is not here.

    Every field of a training recipe can be given as well, e.g. --compute.remat full.

    Args:
        target: accelerators: h100, h200, a100 or rtx4090:NODESxGPUS, v5p:2x2x4, v6e:4x8, cpu:8
        price: of a device-hour [$]; null takes the table's round figure
        rows: rows of a micro-batch; null takes the recipe's
        length: of every row [tokens]; null packs sequences of drawn lengths
        mean_length: tokens of a sequence on average; the default is s1K's
        examples: number of training sequences; the default is s1K's
        layers: compile only so many layers; null for all
        changes: how many changes to the recipe are compiled and compared
        search: compile layouts from the fastest on until one fits
        output: JSON file for all figures
    """

    target: str
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
        """Refuse what no plan could be made of."""
        for name in ("price", "rows", "length", "mean_length", "examples", "layers"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name}={value}: must be positive")
        if self.changes < 0:
            raise UserError(f"changes={self.changes}: must be 0 or more")


def main(argv: Sequence[str]) -> int:
    """The command; 1 where the recipe does not fit."""
    logging.getLogger("jax").setLevel(logging.ERROR)
    use_only_cpu()
    if "--decode" in argv:
        return decode.main([word for word in argv if word != "--decode"])
    ours, recipe = _split(argv)
    command = "python -m jaxs1.plan"
    options = parse(Plan, ours, command=command)
    config = parse(TrainConfig, recipe, command=command)
    outcomes = plan(options, config)
    if options.output:
        Path(options.output).write_text(json.dumps(report.to_json(outcomes), indent=2) + "\n")
    return 0 if outcomes[0].fits else 1


def plan(options: Plan, config: TrainConfig) -> list[Outcome]:
    """Compile a recipe and its alternatives, and print what comes of it; the recipe comes first.

    Raises:
        UserError: one line that names the field, its value, the constraint and the remedy.
    """
    target = parse_target(options.target)
    architecture, origin = find_architecture(config)
    if options.layers:
        architecture = dataclasses.replace(architecture, num_layers=options.layers)
    if options.rows:
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, rows=options.rows)
        )
    if target.accelerator.platform == "cpu":  # no mesh of a recipe is meant for a laptop
        config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, fsdp=-1))
    devices = make_devices(target)
    make = partial(
        make_case,
        architecture=architecture,
        target=target,
        devices=devices,
        sequences=Sequences(options.mean_length, options.examples, options.length),
    )
    case = make(config)
    price = target.accelerator.price if options.price is None else options.price
    report.print_case(case, origin)
    first = _compile(case, price)
    report.print_outcome(first)
    outcomes = [first]
    others = alternatives(case, make, aspects=3 if options.search else 1)
    for other in others[: TRIES if options.search else options.changes]:
        outcome = _compile(other, price)
        report.print_change(outcome, first)
        outcomes.append(outcome)
        if options.search and outcome.fits:
            break
    return outcomes


def find_architecture(config: TrainConfig) -> tuple[Architecture, str]:
    """The recipe's model without its weights, and where its shapes come from.

    A local folder's config.json wins; then the recipe's `architecture`; then the hub.

    Raises:
        UserError: none of them can be read.
    """
    source = config.architecture
    if config.model and Path(config.model).is_dir():
        source = str(Path(config.model) / "config.json")
    elif source is None:
        from huggingface_hub import hf_hub_download

        try:
            source = hf_hub_download(str(config.model), "config.json")
        except Exception as error:
            raise UserError(
                f"model={config.model}: its config.json cannot be fetched ({one_line(error)}); "
                "give --architecture configs/models/NAME.json"
            ) from None
    values = read_config(source)
    values.setdefault("vocab_size", 151936)  # an architecture may leave it to the tokenizer
    return Architecture.from_hf(values, source), source


def _compile(case: Case, price: float) -> Outcome:
    """Compile rows of average length, and the longest ones, which must fit too."""
    typical = case.compile(case.typical)
    longest: Any = None
    if case.workload.longest > case.typical and not typical.refusal:
        longest = case.compile(case.workload.longest)
    return Outcome(case, typical, longest, price)


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments of the plan, and those of the recipe."""
    names = {f.name: f.type for f in dataclasses.fields(Plan)}
    ours: list[str] = []
    recipe: list[str] = []
    where = recipe
    for position, word in enumerate(argv):
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            where = ours if name in names or name == "help" else recipe
            where.append(word)
            last = position + 1 == len(argv) or argv[position + 1].startswith("--")
            if names.get(name) == "bool" and not value and last:
                where.append("true")  # a switch without a value
        else:
            where.append(word)
    return ours, recipe


if __name__ == "__main__":
    run_command(main)
