"""One launch of a kernel, independent of what runs it.

A kernel's file describes its launches with `Launch` and hands them to a `Run`:

* `kernels.xla_call.Compiled` compiles it into the surrounding `jax.jit` (NVIDIA);
* `kernels.interpreted.on_torch` interprets it on torch tensors in CPU memory;
* `kernels.interpreted.on_jax` does so from inside `jax.jit`, for tests of complete programs.

So every kernel has one launcher. This file imports neither jax nor torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Array = Any


@dataclass(frozen=True)
class Launch:
    """A Triton function with all arguments but its inputs.

    The function's parameters are, in this order: inputs, outputs, constants by name.

    Args:
        kernel: the `@triton.jit` function
        grid: number of programs along up to three axes
        outputs: shape and dtype of each output; a dtype is that of an input array, or "float32"
        constants: compile-time constants of the function
        in_place: index of an input -> index of the output that shares its memory
        warps: warps of a program
    """

    kernel: Any
    grid: tuple[int, ...]
    outputs: tuple[tuple[tuple[int, ...], Any], ...]
    constants: Mapping[str, Any]
    in_place: Mapping[int, int] = field(default_factory=dict)
    warps: int = 4

    @property
    def name(self) -> str:
        """The function's name."""
        return self.kernel.__name__


#: (launch, inputs; None where a kernel has no such input) -> outputs
Run = Callable[[Launch, Sequence[Array | None]], tuple[Array, ...]]


def ceil_div(a: int, b: int) -> int:
    """A / b, rounded up."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()
