"""Curate a data set: `python -m jaxs1.curate --config configs/curate_s1k.yaml --input POOL`.

Pipeline: pool -> features that it lacks -> table -> filters -> selection -> rows and report. Only
features are expensive; `--shard i/n` computes a part of them and exits, `--ray n` computes all of
them as n Ray tasks. The output is a new folder, written atomically:

    selected.jsonl    ready for jaxs1.train (or selected.parquet)
    funnel.json       what every stage kept and dropped, and why
    report.md         the same for people, with funnel.png and distributions.png
    dropped.parquet   every dropped row: its number, question key, stage and reason
    config.yaml       the settings; --config reads them back
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from jaxs1.config import UserError, parse, run_command, to_yaml
from jaxs1.curation import features as feats
from jaxs1.curation.decontaminate import read_benchmarks
from jaxs1.curation.features import Feature, FeatureStats
from jaxs1.curation.labelers import Labeler, ModelConfig
from jaxs1.curation.openai_model import OpenAIModel
from jaxs1.curation.output import write_output
from jaxs1.curation.pool import Pool
from jaxs1.curation.ray_tasks import run_on_ray
from jaxs1.curation.recipe import RECIPES, Recipe, select
from jaxs1.curation.report import CurationResult
from jaxs1.curation.table import NAMES, ScanConfig, Table, read_table
from jaxs1.data.tokenizer import load_tokenizer
from jaxs1.storage import check_output

#: Standard column -> its name in s1K-1.1, and in what `jaxs1.traces` writes.
S1K_1_1 = {
    "thinking_trajectories": "deepseek_thinking_trajectory",
    "attempt": "deepseek_attempt",
}
#: Column -> how to compute it.
REMEDIES = {
    "length": "compute it with --features.tokenizer DIR",
    "correct": "compute it with --features.grade true",
    "solved_small": "compute it with --features.small.model MODEL",
    "solved_large": "compute it with --features.large.model MODEL",
    "subject": "compute it with --features.classifier.model MODEL",
}


@dataclass(frozen=True)
class StagesConfig:
    """Stages of the recipe.

    Args:
        duplicates: Drop questions that an earlier row has
        decontamination: Drop questions that share 8 consecutive words with a benchmark
        missing: Drop rows with a missing feature
        format: Drop questions with traces of bad formatting
        difficulty: Drop questions that a reference model solves
        seeds: Always select correct rows of AIME and GPQA, and of MATH with long traces
        diversity: Draw `size` rows; otherwise all remaining rows are selected
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
    """Source families: a source belongs to one if its name contains one of these strings.

    Args:
        aime: Sources whose rows are seeds and weight the subjects; they may contain [asy]
        gpqa: Sources whose rows are seeds and weight the subjects, together half as much as AIME
        math: Sources whose rows are seeds if their trace is long
    """

    aime: list[str] = field(default_factory=lambda: ["AIME"])
    gpqa: list[str] = field(default_factory=lambda: ["Idavidrein/gpqa"])
    math: list[str] = field(default_factory=lambda: ["qfq/openaimath"])


@dataclass(frozen=True)
class FeaturesConfig:
    """Features to compute where the pool has no value.

    Args:
        cache: Folder of computed values; to merge shards, copy their folders into one
        tokenizer: Tokenizer (folder or hub id) that computes length, the tokens of the trace
        grade: Compute correct by grading the attempt against the solution
        small: Small reference model, which computes solved_small
        large: Large reference model, which computes solved_large
        classifier: Model that computes subject; needs `subjects`
        allow_failed: Continue if questions were not answered, and drop them as missing
    """

    cache: str = "runs/features"
    tokenizer: str | None = None
    grade: bool = False
    small: ModelConfig = field(default_factory=ModelConfig)
    large: ModelConfig = field(default_factory=ModelConfig)
    classifier: ModelConfig = field(default_factory=ModelConfig)
    allow_failed: bool = False


@dataclass(frozen=True)
class CurateConfig:
    """Select training data from a pool of questions.

    Args:
        input: Pool of questions: a JSONL or Parquet file, or the id of a hub dataset (owner/name)
        split: Split of a hub dataset
        output: Folder to create; it must not exist
        format: File format of the selected rows
        recipe: Recipe: s1k, or an ablation of the paper: random, longest, diverse, all
        size: Number of rows to select
        uniform_until: Number of selected rows from which on subjects are drawn by benchmark weight
        min_math_length: Trace length above which MATH questions are seeds [tokens]
        seed: Random seed of the selection
        subjects: File with a JSON list of {code, title, descriptions}; null accepts any subject
        benchmarks: Benchmark files for decontamination -> the column of their questions
        columns: Standard column -> its name in the pool, e.g. '{"subject": "domain"}'
        solved: Columns that tell whether a reference model solves the question
        shard: Compute only the i-th of n parts of the features, given as i/n, and exit
        ray: Number of Ray tasks that compute the features; all machines must see input, weights
            and features.cache at the same paths; 0 computes them in this process
        stages: Stages of the recipe
        sources: Source families
        features: Features to compute where the pool has no value
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
    ray: int = 0
    stages: StagesConfig = field(default_factory=StagesConfig)
    sources: SourcesConfig = field(default_factory=SourcesConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)

    def __post_init__(self) -> None:
        """Reject settings that no pool could satisfy."""
        if not self.input:
            raise UserError("input='': must name the pool; give --input FILE.jsonl or a hub id")
        for name, least in (("size", 1), ("uniform_until", 0), ("seed", 0), ("ray", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}: must be {least} or more")
        if unknown := set(self.columns) - {*NAMES, "solution"}:
            raise UserError(
                f"columns.{min(unknown)}: no stage reads such a column; give one of "
                f"{', '.join((*NAMES, 'solution'))}"
            )
        if not self.solved or set(self.solved) - {"solved_small", "solved_large"}:
            raise UserError(f"solved={self.solved}: must be solved_small, solved_large or both")
        for name in ("small", "large", "classifier"):
            getattr(self.features, name).check(f"features.{name}")
        if self.features.classifier.model and self.subjects is None:
            raise UserError(
                "subjects=null: features.classifier needs the known subjects; give --subjects FILE"
            )
        if "decontamination" in self.active and not self.benchmarks and self.shard is None:
            raise UserError(
                "benchmarks={}: decontamination needs at least one file; give --benchmarks "
                """'{"FILE.jsonl": "COLUMN"}', or --stages.decontamination false"""
            )
        if self.part and self.ray:
            raise UserError(f"ray={self.ray}: makes shards itself; leave out --shard")

    @property
    def active(self) -> list[str]:
        """Stages of the recipe that are switched on, in order."""
        return [name for name in RECIPES[self.recipe] if getattr(self.stages, name)]

    @property
    def rules(self) -> Recipe:
        """The recipe with its parameters."""
        return Recipe(
            self.recipe,
            self.active,
            self.solved,
            self.size,
            self.uniform_until,
            self.min_math_length,
            self.seed,
        )

    @property
    def part(self) -> tuple[int, int] | None:
        """The shard as (i, n), or None; raises `UserError` if it is malformed."""
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
        UserError: any error that the user can fix; values computed until then stay in the cache.
    """
    pool = _open_pool(config)
    output = Path(config.output)
    if config.shard is None:
        check_output(output, folder=True, new=True)
    titles = feats.read_subjects(config.subjects) if config.subjects else {}
    features = _features(config, titles)
    if features:
        check_output(config.features.cache, setting="features.cache", folder=True)
    _check_columns(config, pool, features)
    if config.ray and features:
        run_on_ray(
            lambda shard: curate(replace(config, ray=0, shard=shard)), config.ray, _gpus(config)
        )
    feature_stats = {f.name: _compute(config, pool, f) for f in features}
    if config.shard is not None:
        print(f"shard {config.shard} of the features is in {config.features.cache}")
        return 0
    lookups = {f.name: feats.lookup(f, Path(config.features.cache)) for f in features}
    table = _read(config, pool, lookups, titles)
    chosen = select(table, config.rules)
    settings = {name: getattr(config, name) for name in ("input", "recipe", "size", "seed")}
    result = CurationResult(settings, table, chosen, feature_stats, titles)
    write_output(result, pool, lookups, output, kind=config.format, settings=to_yaml(config))
    for stage in chosen.stages:
        print(f"{stage.name:16} {stage.kept:>10,} left, {len(stage.row_D):,} dropped")
    for note in chosen.notes:
        print(note)
    print(f"wrote {output}: {int(chosen.selected_N.sum()):,} of {len(table):,} questions")
    return 0


def _open_pool(config: CurateConfig) -> Pool:
    """The pool; traces in the columns of s1K-1.1 count under their standard names."""
    pool = Pool(config.input, config.split, config.columns)
    found = {
        standard: name
        for standard, name in S1K_1_1.items()
        if standard not in pool.names and name in pool.names
    }
    return replace(pool, columns={**found, **config.columns}) if found else pool


def _features(config: CurateConfig, titles: dict[str, str]) -> list[Feature]:
    """The features to compute, cheap ones first."""
    settings, wanted = config.features, []
    if settings.tokenizer:
        tokenizer = load_tokenizer(settings.tokenizer)
        wanted.append(feats.length_feature(tokenizer))
    if settings.grade:
        wanted.append(feats.correct_feature())
    if settings.classifier.model:
        model = _open_named("classifier", settings.classifier)
        wanted.append(feats.subject_feature(model, titles))
    for size, model_config in (("small", settings.small), ("large", settings.large)):
        if model_config.model:
            wanted.append(feats.solved_feature(f"solved_{size}", _open_named(size, model_config)))
    return wanted


def _gpus(config: CurateConfig) -> int:
    """The largest number of devices that a model in the local engine takes."""
    models = (config.features.small, config.features.large, config.features.classifier)
    return max(m.tensor * m.replicas if m.model and not m.url else 0 for m in models)


def open_model(config: ModelConfig) -> Labeler:
    """The model of a configuration; takes no device before its first question.

    Raises:
        UserError: the local engine finds no weights.
    """
    if config.url:
        return OpenAIModel(config)
    from jaxs1.curation.local_model import LocalModel  # imports jax, which takes seconds

    return LocalModel(config)


def _open_named(name: str, config: ModelConfig) -> Labeler:
    try:
        return open_model(config)
    except UserError as error:
        raise UserError(f"features.{name}.model: {error}") from None


def _check_columns(config: CurateConfig, pool: Pool, features: Sequence[Feature]) -> None:
    """Reject a pool that lacks a column; the error names who needs it and how to get it."""
    if config.shard is not None and not features:
        raise UserError(
            f"shard={config.shard}: there is nothing to compute; give --features.tokenizer, "
            "--features.small.model, ..."
        )
    needs: list[tuple[str, Sequence[str]]] = [(f"feature {f.name}", f.needs) for f in features]
    if config.shard is None:
        needs += [(f"stage {s}", config.rules.needs(s)) for s in config.active]
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


def _compute(config: CurateConfig, pool: Pool, feature: Feature) -> FeatureStats:
    stats = feats.compute(feature, pool, Path(config.features.cache), config.part)
    print(
        f"{feature.name:16} {stats.computed:,} computed, {stats.cached:,} in the cache, "
        f"{stats.unusable:,} without a usable answer, {stats.failed:,} failed",
        flush=True,
    )
    if stats.failed and (stats.fatal or not config.features.allow_failed):
        drop = "" if stats.fatal else ", or --features.allow_failed true to drop these rows"
        raise UserError(
            f"feature {feature.name}: {stats.failed:,} unanswered by {feature.where} "
            f"({stats.reason}); all {stats.computed + stats.cached:,} other values are kept in "
            f"{config.features.cache}; repeat the command to resume{drop}"
        )
    return stats


def _read(
    config: CurateConfig, pool: Pool, lookups: dict[str, Any], titles: dict[str, str]
) -> Table:
    cleaned = "decontamination" in config.active
    scan = ScanConfig(
        columns=tuple(n for n in config.rules.columns if n in pool.names | lookups.keys()),
        benchmarks=read_benchmarks(config.benchmarks if cleaned else {}),
        families=vars(config.sources),
        subjects=frozenset(titles) or None,
    )
    return read_table(pool, scan, lookups)


if __name__ == "__main__":
    run_command(main)
