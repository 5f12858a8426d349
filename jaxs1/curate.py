"""Many questions to few: `python -m jaxs1.curate --config configs/curate_s1k.yaml --input POOL`.

The way through: pool -> features that it lacks -> table -> filters -> selection -> rows and report.
Only features are heavy; `--shard i/n` computes a part of them and ends. The output is a new folder
that is whole or not there at all:

    selected.jsonl    ready for jaxs1.train (or selected.parquet)
    funnel.json       what every stage kept and dropped, and why
    report.md         the same for people, with funnel.png and distributions.png
    dropped.parquet   every dropped row: its number, question key, stage and reason
    config.yaml       the settings; --config reads them back
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxs1.config import UserError, parse, run_command, to_yaml
from jaxs1.curation import features as feats
from jaxs1.curation import filters, selection
from jaxs1.curation.decontaminate import read_benchmarks
from jaxs1.curation.endpoint import Endpoint
from jaxs1.curation.features import Feature, Tally
from jaxs1.curation.output import write_output
from jaxs1.curation.pool import Pool
from jaxs1.curation.report import Story
from jaxs1.curation.table import NAMES, Scan, Table, read_table
from jaxs1.data.tokenizer import load_tokenizer

CLEAN = ("duplicates", "decontamination", "missing", "format")
#: Recipe -> its stages. s1k: section 2.2 of the paper; the rest: its ablations (section 5.1), which
#: start from the quality-filtered pool; `all` keeps whatever can be trained on.
RECIPES = {
    "s1k": (*CLEAN, "difficulty", "seeds", "diversity"),
    "random": (*CLEAN, "diversity"),
    "longest": (*CLEAN, "diversity"),
    "diverse": (*CLEAN, "diversity"),
    "all": ("duplicates", "decontamination", "missing"),
}
#: Recipe -> the columns that its draw looks at.
DRAWN_BY = {
    "s1k": ("source_type", "length", "subject"),
    "random": ("question",),
    "longest": ("length",),
    "diverse": ("subject",),
}
#: Column -> how to have it computed.
REMEDIES = {
    "length": "compute it with --features.tokenizer DIR",
    "correct": "compute it with --features.grade true",
    "solved_small": "compute it with --features.small.url URL --features.small.model NAME",
    "solved_large": "compute it with --features.large.url URL --features.large.model NAME",
    "subject": "compute it with --features.classifier.url URL --features.classifier.model NAME",
}


@dataclass(frozen=True)
class StagesConfig:
    """Which stages run, of those that the recipe has.

    Args:
        duplicates: drop a question that an earlier row has
        decontamination: drop a question that shares 8 words in a row with a benchmark
        missing: drop a row with any missing feature
        format: drop a question whose text is damaged
        difficulty: drop a question that a reference model solves
        seeds: select some rows for sure
        diversity: draw `size` rows; without it all rows that are left are selected
    """

    duplicates: bool = True
    decontamination: bool = True
    missing: bool = True
    format: bool = True
    difficulty: bool = True
    seeds: bool = True
    diversity: bool = True


@dataclass(frozen=True)
class SourcesConfig:
    """Sources that rules name: a source belongs where its name contains one of these.

    Args:
        aime: seeds; give subjects their weight in the draw; [asy] in the question is no damage
        gpqa: seeds; give subjects a weight, together half of AIME's
        math: seeds where the trace is long
    """

    aime: list[str] = field(default_factory=lambda: ["AIME"])
    gpqa: list[str] = field(default_factory=lambda: ["Idavidrein/gpqa"])
    math: list[str] = field(default_factory=lambda: ["qfq/openaimath"])


@dataclass(frozen=True)
class FeaturesConfig:
    """How columns are computed where the pool has no value.

    Args:
        cache: folder of what was computed; put those of several shards together to merge them
        tokenizer: folder or hub id; for length, the tokens of the trace
        grade: compute correct by grading the attempt against the solution
        small: the small reference model, for solved_small
        large: the large reference model, for solved_large
        classifier: finds the subject; needs `subjects`
        allow_failed: go on where questions stayed unanswered, and drop them as missing
    """

    cache: str = "runs/features"
    tokenizer: str | None = None
    grade: bool = False
    small: Endpoint = field(default_factory=Endpoint)
    large: Endpoint = field(default_factory=Endpoint)
    classifier: Endpoint = field(default_factory=Endpoint)
    allow_failed: bool = False


@dataclass(frozen=True)
class CurateConfig:
    """Select training data from a pool of questions.

    Args:
        input: a JSONL or Parquet file, or the id of a hub dataset (owner/name)
        split: which split of a hub dataset
        output: the folder to be made; must not exist
        format: of the selected rows
        recipe: s1k, or an ablation of the paper: random, longest, diverse, all
        size: rows to select
        uniform_until: selected rows after which subjects are drawn by benchmark weight
        min_math_length: MATH questions with longer traces are seeds [tokens]
        seed: of the draws
        subjects: JSON list of {code, title, descriptions}; null takes any subject
        benchmarks: files to keep out of the pool -> the column of their questions
        columns: our column -> the pool's, where names differ, e.g. '{"subject": "domain"}'
        solved: columns that say whether a reference model solves the question
        shard: i/n computes the i-th of n parts of the features and ends
        stages: which stages run
        sources: which sources rules name
        features: how columns are computed that the pool lacks
    """

    input: str = ""
    split: str = "train"
    output: str = "runs/curate"
    format: Literal["jsonl", "parquet"] = "jsonl"
    recipe: Literal["s1k", "random", "longest", "diverse", "all"] = "s1k"
    size: int = 1000
    uniform_until: int = 700
    min_math_length: int = 5600
    seed: int = 0
    subjects: str | None = None
    benchmarks: dict[str, str] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    solved: list[str] = field(default_factory=lambda: ["solved_small", "solved_large"])
    shard: str | None = None
    stages: StagesConfig = field(default_factory=StagesConfig)
    sources: SourcesConfig = field(default_factory=SourcesConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)

    def __post_init__(self) -> None:
        """Refuse what no pool could make sense of."""
        if not self.input:
            raise UserError("input='': must name the pool; give --input FILE.jsonl or a hub id")
        for name, least in (("size", 1), ("uniform_until", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}: must be {least} or more")
        if unknown := set(self.columns) - {*NAMES, "solution"}:
            raise UserError(
                f"columns.{min(unknown)}: no stage reads such a column; ours are "
                f"{', '.join((*NAMES, 'solution'))}"
            )
        if not self.solved or set(self.solved) - {"solved_small", "solved_large"}:
            raise UserError(f"solved={self.solved}: must be solved_small, solved_large or both")
        for name in ("small", "large", "classifier"):
            getattr(self.features, name).check(f"features.{name}")
        if self.features.classifier.url and self.subjects is None:
            raise UserError(
                "subjects=null: features.classifier must know the subjects; give --subjects FILE"
            )
        if "decontamination" in self.active and not self.benchmarks and self.shard is None:
            raise UserError(
                "benchmarks={}: decontamination needs at least one file; give --benchmarks "
                """'{"FILE.jsonl": "COLUMN"}', or --stages.decontamination false"""
            )
        _ = self.part

    @property
    def active(self) -> list[str]:
        """Stages of the recipe that are not switched off, in order."""
        return [name for name in RECIPES[self.recipe] if getattr(self.stages, name)]

    @property
    def part(self) -> tuple[int, int] | None:
        """The shard as (i, n); raises `UserError` where it is none."""
        if self.shard is None:
            return None
        if match := re.fullmatch(r"(\d+)/(\d+)", self.shard):
            i, n = int(match[1]), int(match[2])
            if 1 <= i <= n:
                return i, n
        raise UserError(f"shard={self.shard}: must be i/n with i from 1 to n, e.g. 2/8")


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    return curate(parse(CurateConfig, argv, command="python -m jaxs1.curate"))


def curate(config: CurateConfig) -> int:
    """Compute features, filter, select, write `config.output`; or one shard of the features.

    Raises:
        UserError: anything the user can mend; what was computed until then is kept.
    """
    pool = Pool(config.input, config.split, config.columns)
    output = Path(config.output)
    if config.shard is None and output.exists():
        raise UserError(f"output={output}: exists already; remove it or give another folder")
    titles = feats.read_subjects(config.subjects) if config.subjects else {}
    features = _features(config, titles)
    _check_columns(config, pool, features)
    tallies = {f.name: _compute(config, pool, f) for f in features}
    if config.shard is not None:
        print(f"shard {config.shard} of the features is in {config.features.cache}")
        return 0
    table = _read(config, pool, features, titles)
    story = select(table, config, tallies, titles)
    lookups = _lookups(config, features)
    write_output(story, pool, lookups, output, kind=config.format, settings=to_yaml(config))
    for stage in story.stages:
        print(f"{stage.name:16} {stage.kept:>10,} left, {len(stage.row_D):,} dropped")
    print(*story.notes, sep="\n", end="\n" * bool(story.notes))
    print(f"wrote {output}: {int(story.selected_N.sum()):,} of {len(table):,} questions")
    return 0


def select(
    table: Table, config: CurateConfig, tallies: dict[str, Tally], titles: dict[str, str]
) -> Story:
    """Filter a table and draw from what is left.

    Raises:
        UserError: too few rows are left, too many are seeds, a row lacks what the draw looks at.
    """
    left, stages = filters.apply_filters(table, config.active)
    chosen, seeds, notes = np.ones(len(left), bool), 0, list[str]()
    if "diversity" in config.active:
        _check_drawable(config, left, [(s.name, s.kept) for s in stages])
        seeds_N = np.zeros(len(left), bool)
        if "seeds" in config.active:
            seeds_N = filters.seeds(left, config.min_math_length)
        seeds = int(seeds_N.sum())
        if seeds > config.size:
            raise UserError(
                f"size={config.size}: {seeds:,} rows are seeds, selected for sure; raise --size or "
                "--min_math_length, or give --stages.seeds false"
            )
        chosen, notes = _draw(config, left, seeds_N)
        verdict = np.where(chosen, -1, 0), ("not drawn",)
        stages.append(filters.drop(left, "diversity", *verdict))
    elif not len(left):
        raise UserError(f"input={config.input}: no row is left after {', '.join(config.active)}")
    selected_N = np.zeros(len(table), bool)
    selected_N[left.row_N[chosen]] = True
    settings = {k: getattr(config, k) for k in ("input", "recipe", "size", "seed")}
    return Story(settings, table, stages, selected_N, seeds, tallies, notes, titles)


def _draw(config: CurateConfig, left: Table, seeds_N: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """True where a row is drawn, and what to tell the user about it."""
    key_N, size, seed = left.key_N, config.size, config.seed
    if config.recipe == "random":
        return selection.random(key_N, size=size, seed=seed), []
    if config.recipe == "longest":
        return selection.longest(key_N, left.length_N, size=size), []
    if config.recipe == "diverse":
        return selection.diverse(key_N, left.subject_N, size=size, seed=seed), []
    aime_N, gpqa_N = left.is_family("aime"), left.is_family("gpqa")
    weights = selection.benchmark_weights(left.subject_N, aime_N, gpqa_N)
    chosen, alike = selection.diversity(
        key_N,
        left.subject_N,
        left.length_N,
        seeds_N,
        weights,
        size=size,
        uniform_until=config.uniform_until,
        seed=seed,
    )
    if not alike:
        return chosen, []
    return chosen, [
        f"{alike:,} rows were drawn from all subjects alike: those of AIME and GPQA questions "
        "had no rows left."
    ]


def _check_drawable(config: CurateConfig, left: Table, kept: list[tuple[str, int]]) -> None:
    """Refuse a draw from too few rows, or from rows without what it looks at."""
    if len(left) < config.size:
        counts = ", ".join(f"{name} {n:,}" for name, n in kept) or f"{len(left):,} in the pool"
        raise UserError(
            f"size={config.size}: only {len(left):,} rows are left to draw from ({counts}); lower "
            "--size, give a larger pool, or switch a stage off"
        )
    for name, column_N in (("subject", left.subject_N), ("length", left.length_N)):
        lacking = int((column_N < 0).sum())
        if lacking and name in DRAWN_BY[config.recipe]:
            raise UserError(
                f"stages.missing=false: {lacking:,} rows have no {name}, which stage diversity "
                "needs; leave the stage on"
            )


def _features(config: CurateConfig, titles: dict[str, str]) -> list[Feature]:
    """The features that the user wants computed, cheap ones first."""
    settings, wanted = config.features, []
    if settings.tokenizer:
        tokenizer = load_tokenizer(settings.tokenizer)
        wanted.append(feats.length_feature(tokenizer, settings.tokenizer))
    if settings.grade:
        wanted.append(feats.correct_feature())
    if settings.classifier.url:
        wanted.append(feats.subject_feature(settings.classifier, titles))
    for name, model in (("solved_small", settings.small), ("solved_large", settings.large)):
        if model.url:
            wanted.append(feats.solved_feature(name, model))
    return wanted


def _check_columns(config: CurateConfig, pool: Pool, features: Sequence[Feature]) -> None:
    """Name a column that is not there, who needs it and how to have it."""
    if config.shard is not None and not features:
        raise UserError(
            f"shard={config.shard}: there is nothing to compute; give --features.tokenizer, "
            "--features.small.url, ..."
        )
    needs: list[tuple[str, Sequence[str]]] = [(f"feature {f.name}", f.needs) for f in features]
    if config.shard is None:
        needs += [(f"stage {s}", _needs(config, s)) for s in config.active]
    computed = {f.name for f in features}
    for who, names in needs:
        for name in names:
            if name not in pool.names | computed:
                remedy = REMEDIES.get(name, "give a pool that has it")
                switch = f", or --stages.{who[6:]} false" if who.startswith("stage") else ""
                raise UserError(
                    f"input={config.input}: column {name!r} is missing, which {who} needs; "
                    f'{remedy}, name it with --columns \'{{"{name}": "COLUMN"}}\'{switch}'
                )


def _needs(config: CurateConfig, stage: str) -> Sequence[str]:
    """The columns that a stage looks at."""
    return {
        "duplicates": ("question",),
        "decontamination": ("question",),
        "missing": _known(config),
        "format": ("question", "source_type"),
        "difficulty": config.solved,
        "seeds": ("source_type", "length", "correct"),
        "diversity": DRAWN_BY.get(config.recipe, ()),
    }[stage]


def _known(config: CurateConfig) -> list[str]:
    """All columns but those of a reference model that is not asked for."""
    return [n for n in NAMES if not n.startswith("solved_") or n in config.solved]


def _compute(config: CurateConfig, pool: Pool, feature: Feature) -> Tally:
    tally = feats.compute(feature, pool, Path(config.features.cache), config.part)
    print(
        f"{feature.name:16} {tally.computed:,} computed, {tally.cached:,} in the cache, "
        f"{tally.unusable:,} without a usable answer, {tally.failed:,} failed",
        flush=True,
    )
    if tally.failed and (tally.fatal or not config.features.allow_failed):
        drop = "" if tally.fatal else ", or --features.allow_failed true to drop these rows"
        raise UserError(
            f"feature {feature.name}: {feature.where} left {tally.failed:,} questions unanswered "
            f"({tally.reason}); all {tally.computed + tally.cached:,} other values are kept in "
            f"{config.features.cache}; run the same command again to go on{drop}"
        )
    return tally


def _read(
    config: CurateConfig, pool: Pool, features: Sequence[Feature], titles: dict[str, str]
) -> Table:
    cleaned = "decontamination" in config.active
    scan = Scan(
        columns=tuple(n for n in _known(config) if n in pool.names | {f.name for f in features}),
        benchmarks=read_benchmarks(config.benchmarks if cleaned else {}),
        families=vars(config.sources),
        subjects=frozenset(titles) or None,
    )
    return read_table(pool, scan, _lookups(config, features))


def _lookups(config: CurateConfig, features: Sequence[Feature]) -> dict[str, Any]:
    return {f.name: feats.lookup(f, Path(config.features.cache)) for f in features}


if __name__ == "__main__":
    run_command(main)
