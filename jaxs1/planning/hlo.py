"""Collectives, large copies and launches, read from the text of a compiled program."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from typing import NamedTuple

KINDS = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "collective-permute",
)
#: Bits of XLA's element types.
_BITS = {"pred": 8, "bf16": 16, "s4": 4, "u4": 4}

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|called_computations)=\{?%?([\w.\-]+)")


#: Smallest copy [bytes] that counts as large: one of weights or of pages of the KV cache.
LARGE = 1 << 20


class Collective(NamedTuple):
    """All exchanges of one kind.

    Args:
        times: number of executions
        received: bytes that one device receives in all of them
    """

    times: int
    received: float


class _Operation(NamedTuple):
    result: str
    kind: str
    rest: str


def collectives(text: str) -> dict[str, Collective]:
    """Collectives of one run of a program, by kind; a loop counts as often as it runs.

    Args:
        text: an optimized HLO module, as `compiled.as_text()` gives it
    """
    computations, entry = _parse(text)
    counts: dict[str, int] = defaultdict(int)
    received: dict[str, float] = defaultdict(float)

    def visit(name: str, times: int) -> None:
        for operation in computations[name].values():
            kind = operation.kind.removesuffix("-done")
            if kind in KINDS:
                start = operation
                if operation.kind.endswith("-done"):
                    source = re.match(r"%?([\w.\-]+)|.*?%([\w.\-]+)", operation.rest)
                    start = computations[name][_last_group(source)]
                counts[kind] += times
                group = _group_size(start.rest)
                received[kind] += times * _received(kind, _bytes(operation.result), group)
            elif operation.kind == "while":
                body = re.search(r"body=%?([\w.\-]+)", operation.rest)
                visit(_last_group(body), times * _trips(operation, computations))
            elif operation.kind != "fusion":
                for called in _CALLED.findall(operation.rest):
                    if called in computations:
                        visit(called, times)

    visit(entry, 1)
    return {kind: Collective(counts[kind], received[kind]) for kind in KINDS if counts[kind]}


def large_copies(text: str) -> tuple[list[str], list[str]]:
    """Result types of copies of at least `LARGE` bytes: inside loops and calls, and outside.

    Padding copies as well. A TPU's prefetch into faster memory (`S(1)`) does not count.

    Args:
        text: an optimized HLO module
    """
    computations, entry = _parse(text)
    copies: tuple[list[str], list[str]] = ([], [])
    for name, operations in computations.items():
        for operation in operations.values():
            kind, _, start = operation.kind.partition("-")
            if kind not in ("copy", "pad") or start not in ("", "start"):
                continue
            shape = _last_group(re.search(r"(\w+\[[\d,]*\])", operation.result))
            if _bytes(shape) >= LARGE and not (start and "S(1)" in operation.result):
                copies[name == entry].append(shape)
    return copies


def count_launches(thunks: str) -> dict[str, int]:
    """Launches by the host for one run, by kind; a command buffer is a CUDA graph.

    Args:
        thunks: XLA's dump of the thunk sequence; thunks inside others are indented
    """
    return dict(Counter(re.findall(r"^\d+: (k\w+)", thunks, re.M)))


def _parse(text: str) -> tuple[dict[str, dict[str, _Operation]], str]:
    """Computation name -> operation name -> operation; and the entry's name."""
    computations: dict[str, dict[str, _Operation]] = {}
    entry = current = ""
    for line in text.splitlines():
        if match := _OPERATION.match(line):
            name, *operation = match.groups()
            computations[current][name] = _Operation(*operation)
        elif match := _HEADER.match(line):
            current = match[2]
            computations[current] = {}
            entry = current if match[1] else entry
    return computations, entry


def _trips(operation: _Operation, computations: dict[str, dict[str, _Operation]]) -> int:
    """Trip count of a loop: XLA's annotation, or the constant in its condition."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', operation.rest):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", operation.rest)
    constants = [
        int(o.rest.split(")")[0])
        for o in computations[_last_group(condition)].values()
        if o.kind == "constant" and re.match(r"[su](8|16|32|64)\[\]", o.result)
    ]
    return max(constants, default=1)


def _group_size(rest: str) -> int:
    """Number of devices in one exchange, from any of XLA's three notations for groups."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return listed[1].count(",") + 1
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
    return 2  # a permutation lists pairs instead


def _received(kind: str, result: float, group: int) -> float:
    """Bytes that a device receives for a result of this size, if no byte is sent twice."""
    share = (group - 1) / group
    return {
        "all-gather": result * share,
        "reduce-scatter": result * (group - 1),
        "all-reduce": 2 * result * share,
        "all-to-all": result * share,
        "collective-permute": result,
    }[kind]


def _bytes(shape: str) -> float:
    """Size [bytes] of a shape, or of all members of a tuple."""
    total = 0.0
    for kind, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shape):
        bits = _BITS.get(kind) or int(re.sub(r"\D*(\d+).*", r"\1", kind))
        total += math.prod(int(n) for n in sizes.split(",") if n) * bits / 8
    return total


def _last_group(match: re.Match[str] | None) -> str:
    assert match is not None, "HLO text of an unknown form"
    return next(group for group in match.groups() if group)
