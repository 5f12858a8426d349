"""Published models' shapes, and the bytes and FLOPs of one decoding step.

Pure arithmetic: no jax, no torch, no Triton. A tensor that must be read from or written to memory
is counted once; a kernel's partial sums are not. A kernel's floor is the time to move its bytes at
the memory's bandwidth or to compute its products, whichever is longer. Counted by hand for
Qwen2.5-32B in bfloat16: 63.97 GB of weights a step, 256 KiB of keys and values a token.

    B sequences   D width     F width of the MLP    N query heads    K key/value heads
    H head        V vocabulary                      L layers
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

#: Tokens in a page of the cache.
PAGE = 64
#: Smallest and largest supported batch size.
BATCHES = (1, 64)
#: Sizes of a bfloat16, and of the scale of an int8 output [bytes].
BF16, SCALE = 2, 4


@dataclass(frozen=True)
class Shape:
    """Shape of a model, or of one device's shard of it.

    Args:
        layers: L
        width: D
        mlp: F
        heads: N
        kv_heads: K
        head_dim: H
        vocabulary: V
        tied: whether the head is the embedding
        bias: whether q, k and v have biases (Qwen2)
        qk_norm: whether heads of q and k are normalised (Qwen3)
        theta: base of the rotary embedding
        eps: epsilon of the norms
        weight_bytes: size of an element of a matrix [bytes]: 2 for bfloat16, 1 for int8 with scales
    """

    layers: int
    width: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    bias: bool = False
    qk_norm: bool = False
    theta: float = 1e6
    eps: float = 1e-6
    weight_bytes: int = 2

    @property
    def rope(self) -> dict[str, Any]:
        """Arguments of `kernels.decode.plain_rotation`."""
        return {"head_dim": self.head_dim, "theta": self.theta}

    def split(self, devices: int) -> Shape:
        """One device's shard under tensor parallelism; ValueError if it does not divide evenly."""
        parts = {}
        for name in ("heads", "kv_heads", "mlp", "vocabulary"):
            value = getattr(self, name)
            if value % devices:
                raise ValueError(f"{name}={value}: must be a multiple of devices={devices}")
            parts[name] = value // devices
        return dataclasses.replace(self, **parts)


_qwen2 = functools.partial(Shape, bias=True)
_qwen3 = functools.partial(Shape, qk_norm=True)
_llama3 = functools.partial(Shape, theta=5e5, eps=1e-5)
_smollm2 = functools.partial(Shape, eps=1e-5, tied=True)

#: L, D, F, N, K, H, V of every published dense model, the same as configs/models/.
MODELS = {
    "qwen2.5-0.5b": _qwen2(24, 896, 4864, 14, 2, 64, 151936, tied=True),
    "qwen2.5-1.5b": _qwen2(28, 1536, 8960, 12, 2, 128, 151936, tied=True),
    "qwen2.5-3b": _qwen2(36, 2048, 11008, 16, 2, 128, 151936, tied=True),
    "qwen2.5-7b": _qwen2(28, 3584, 18944, 28, 4, 128, 152064, tied=False),
    "qwen2.5-14b": _qwen2(48, 5120, 13824, 40, 8, 128, 152064, tied=False),
    "qwen2.5-32b": _qwen2(64, 5120, 27648, 40, 8, 128, 152064, tied=False),
    "qwen2.5-72b": _qwen2(80, 8192, 29568, 64, 8, 128, 152064, tied=False),
    "qwen3-0.6b": _qwen3(28, 1024, 3072, 16, 8, 128, 151936, tied=True),
    "qwen3-1.7b": _qwen3(28, 2048, 6144, 16, 8, 128, 151936, tied=True),
    "qwen3-4b": _qwen3(36, 2560, 9728, 32, 8, 128, 151936, tied=True),
    "qwen3-8b": _qwen3(36, 4096, 12288, 32, 8, 128, 151936, tied=False),
    "qwen3-14b": _qwen3(40, 5120, 17408, 40, 8, 128, 151936, tied=False),
    "qwen3-32b": _qwen3(64, 5120, 25600, 64, 8, 128, 151936, tied=False),
    "llama3.2-1b": _llama3(16, 2048, 8192, 32, 8, 64, 128256, tied=True),
    "llama3.2-3b": _llama3(28, 3072, 8192, 24, 8, 128, 128256, tied=True),
    "llama3.1-8b": _llama3(32, 4096, 14336, 32, 8, 128, 128256, tied=False),
    "llama3.1-70b": _llama3(80, 8192, 28672, 64, 8, 128, 128256, tied=False),
    "smollm2-135m": _smollm2(30, 576, 1536, 9, 3, 64, 49152, theta=1e5),
    "smollm2-360m": _smollm2(32, 960, 2560, 15, 5, 64, 49152, theta=1e5),
    "smollm2-1.7b": _smollm2(24, 2048, 8192, 32, 32, 64, 49152, theta=1.3e5),
}


@dataclass(frozen=True)
class Work:
    """Least bytes to move and FLOPs to compute.

    Args:
        weights: weights read [bytes]
        cache: keys and values read and written [bytes]
        activations: activations read and written [bytes]
        flops: FLOPs of matrix products; a multiply-add is two
    """

    weights: int = 0
    cache: int = 0
    activations: int = 0
    flops: int = 0

    @property
    def bytes(self) -> int:
        """All bytes moved between memory and the chip."""
        return self.weights + self.cache + self.activations

    def times(self, n: int) -> Work:
        """The work of n repetitions."""
        return Work(*(n * value for value in dataclasses.astuple(self)))

    def plus(self, other: Work) -> Work:
        """The sum of both."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Work(*(a + b for a, b in pairs))

    def floor(self, bandwidth: float, peak: float = float("inf")) -> float:
        """Least time [s] at `bandwidth` [bytes/s] and `peak` [flop/s]."""
        return max(self.bytes / bandwidth, self.flops / peak)


def kernel_work(shape: Shape, batch: int, context: int) -> dict[str, Work]:
    """One call of each kernel, in bfloat16 but for the matrices.

    Args:
        shape: shape of the model, or of one device's shard
        batch: number of sequences B
        context: tokens that each new token attends to, including itself
    """
    D, F, H, V = shape.width, shape.mlp, shape.head_dim, shape.vocabulary
    q, kv = shape.heads * H, shape.kv_heads * H

    def product(inputs: int, outputs: int, extra: int, read: int, written: int) -> Work:
        matrix = inputs * outputs
        moved = BF16 * batch * read + written * batch
        scales = SCALE * outputs if shape.weight_bytes == 1 else 0
        weights = shape.weight_bytes * matrix + scales + BF16 * extra
        return Work(weights, 0, moved, 2 * batch * matrix)

    attention = Work(
        weights=BF16 * (shape.bias * (q + 2 * kv) + shape.qk_norm * 2 * H),
        cache=BF16 * batch * context * 2 * kv,
        activations=BF16 * batch * (2 * q + 2 * kv),
        flops=4 * batch * context * q,
    )
    return {
        "qkv": product(D, q + 2 * kv, D, D, BF16 * (q + 2 * kv)),
        "attention": attention,
        "out": product(q, D, 0, q + D, BF16 * D),
        "gate_up": product(D, 2 * F, D, D, BF16 * F),
        "down": product(F, D, 0, F + D, BF16 * D),
        "head": product(D, V, D, D, 4 * V),
    }


def layer_work(shape: Shape, batch: int, context: int) -> Work:
    """One layer."""
    kernels = kernel_work(shape, batch, context)
    total = Work()
    for name, work in kernels.items():
        total = total if name == "head" else total.plus(work)
    return total


def step_work(shape: Shape, batch: int, context: int) -> Work:
    """One token of every sequence: all layers and the head; embedding rows are not counted."""
    head = kernel_work(shape, batch, context)["head"]
    return layer_work(shape, batch, context).times(shape.layers).plus(head)


def cache_bytes(shape: Shape) -> int:
    """Keys and values of one token in all layers [bytes]."""
    return BF16 * 2 * shape.layers * shape.kv_heads * shape.head_dim
