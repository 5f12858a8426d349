"""What an evaluation found: `Results`, stored in results.json, with a `PointResult` per point."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxs1.config import UserError
from jaxs1.evaluation.methods import METHODS, Bound
from jaxs1.evaluation.metrics import Comparison
from jaxs1.evaluation.samples import current_settings

RESULTS = "results.json"
#: Fields and methods of version 0.1 -> their names now.
RENAMED_FIELDS = {
    "way": "method",
    "ways": "methods",
    "kept": "within_bound",
    "samples_kept": "samples_within_bound",
}
RENAMED_METHODS = {"max_thinking": "budget"}


@dataclass(frozen=True)
class PointResult:
    """What was measured at one point of the sweep.

    Args:
        method: A name in METHODS
        value: Value in the sweep; None for the run without instruction or sweep
        accuracy: Share of correct samples, 0 to 1
        low: Lower end of Wilson's 95 % interval of the accuracy, over questions
        high: Upper end of that interval
        right: Number of correct samples
        samples: Number of samples
        thinking_tokens: Mean thinking [tokens]; None if no sample could run
        answer_tokens: Mean answer [tokens]; None if no sample could run
        waits: Mean number of Waits; None if no sample could run
        draws: Mean number of draws of a sample
        bound: Amount of thinking that the method promises
        amount: Mean amount of thinking in the unit of the bound; None if no sample could run
        within_bound: Whether the mean amount is within the bound
        samples_within_bound: Share of samples within the bound; None where it is relative
        thinking_ended_by: Reason why thinking ended -> number of samples
        finish_reason: Reason why the answer ended -> number of samples
        too_long: Samples that thought too long in every draw
        notes: Samples that ran with a note, e.g. about a clamped budget
        majority: Number of voting samples -> accuracy of their majority
        any: Number of samples -> share of questions with a correct one among them
        versus_natural: Comparison with natural stopping on the same questions; None where the
            samples are those of natural stopping, and without such a point
    """

    method: str
    value: int | str | None
    accuracy: float
    low: float
    high: float
    right: int
    samples: int
    thinking_tokens: float | None
    answer_tokens: float | None
    waits: float | None
    draws: float
    bound: Bound
    amount: float | None
    within_bound: bool
    samples_within_bound: float | None
    thinking_ended_by: dict[str, int]
    finish_reason: dict[str, int]
    too_long: int
    notes: int
    majority: dict[int, float]
    any: dict[int, float]
    versus_natural: Comparison | None = None

    @property
    def label(self) -> str:
        """The point for people, e.g. `num_waits 2`."""
        if self.method == "natural":
            return METHODS["natural"]
        return f"{self.method} {'none' if self.value is None else self.value}"

    def as_json(self) -> dict[str, Any]:
        """The row of results.json."""
        row = dataclasses.asdict(self)
        high = None if math.isinf(self.bound.high) else self.bound.high
        return row | {"bound": {"low": self.bound.low, "high": high, "unit": self.bound.unit}}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> PointResult:
        """The row of results.json as an object, also one of version 0.1."""
        fields = _renamed(row)
        bound, compared = fields["bound"], fields.get("versus_natural")
        high = math.inf if bound["high"] is None else bound["high"]
        return cls(
            **fields
            | {
                "method": RENAMED_METHODS.get(fields["method"], fields["method"]),
                "bound": Bound(bound["low"], high, bound["unit"]),
                "majority": {int(k): share for k, share in fields["majority"].items()},
                "any": {int(k): share for k, share in fields["any"].items()},
                "versus_natural": None if compared is None else Comparison(**compared),
            }
        )


@dataclass(frozen=True)
class MethodResult:
    """Measures of the s1 paper for one method, over its points.

    Args:
        runs: Number of points
        control: Share of points whose mean amount is within their bound; None without bounds
        control_of_samples: Mean share of samples within their bound; None without bounds
        scaling_per_1000_tokens: Mean slope of the accuracy; None if no two points differ in tokens
        scaling_per_doubling: The same per doubling of the thinking
        performance: Best accuracy
    """

    runs: int
    control: float | None
    control_of_samples: float | None
    scaling_per_1000_tokens: float | None
    scaling_per_doubling: float | None
    performance: float | None


@dataclass(frozen=True)
class Results:
    """Everything that an evaluation reports.

    Args:
        name: Name of the model in tables and pictures
        task: Name of the task
        questions: Number of questions
        samples_per_question: Number of samples of a question at each point
        points: One result per point of the sweep, in its order
        methods: Method -> its measures
        settings: What all samples share
        natural: Label of the point with natural stopping, to which the others are compared; None
            without one
    """

    name: str
    task: str
    questions: int
    samples_per_question: int
    points: Sequence[PointResult]
    methods: Mapping[str, MethodResult]
    settings: Mapping[str, Any]
    natural: str | None = None

    def of(self, method: str) -> list[PointResult]:
        """The points of one method, in the order of the sweep."""
        return [point for point in self.points if point.method == method]

    def as_json(self) -> dict[str, Any]:
        """The content of results.json, as reading the file returns it."""
        tree = {
            **vars(self),
            "points": [point.as_json() for point in self.points],
            "methods": {name: vars(found) for name, found in self.methods.items()},
        }
        return json.loads(json.dumps(tree))

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Results:
        """The content of results.json as an object, also that of version 0.1."""
        fields = _renamed(tree)
        methods = fields["methods"].items()
        return cls(
            **fields
            | {
                "points": [PointResult.from_json(row) for row in fields["points"]],
                "methods": {
                    RENAMED_METHODS.get(name, name): MethodResult(**found)
                    for name, found in methods
                },
                "settings": current_settings(fields["settings"]),
            }
        )


def read_results(path: str) -> Results:
    """The results of another evaluation, from its folder or its results.json.

    Raises:
        UserError: the file cannot be read or is something else.
    """
    file = Path(path) / RESULTS if Path(path).is_dir() else Path(path)
    try:
        return Results.from_json(json.loads(file.read_text()))
    except OSError as error:
        raise UserError(
            f"compare={path}: cannot be read ({error.strerror}); give the folder of an evaluation"
        ) from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UserError(
            f"compare={path}: is not the results of an evaluation; give the folder of one"
        ) from None


def _renamed(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {RENAMED_FIELDS.get(name, name): value for name, value in fields.items()}
