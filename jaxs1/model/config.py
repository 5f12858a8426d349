"""Settings of the model: device mesh, computation, adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

#: Linear maps of a layer, by their Hugging Face names.
LinearName = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class LoraConfig:
    """LoRA adapters (Hu et al. 2021): y = x W + x A B alpha / rank, with frozen W.

    Args:
        rank: Rank of the adapters; 0 trains all weights instead
        alpha: Numerator of the adapters' scale
        target_modules: Linear maps that get an adapter
        frozen_dtype: Data type of the frozen weights
    """

    rank: int = 0
    alpha: float = 32.0
    target_modules: tuple[LinearName, ...] = get_args(LinearName)
    frozen_dtype: Literal["bfloat16", "float32"] = "bfloat16"


@dataclass(frozen=True)
class MeshConfig:
    """Device mesh; the product of its axes is the number of devices.

    Args:
        data: Data parallelism: replicas, each with its own rows
        fsdp: Devices that shard parameters and optimizer state, each with its own rows; -1 takes
            the devices that the other axes leave
        expert: Expert parallelism: devices that divide the experts of a mixture, each with its own
            rows
        context: Context parallelism: devices that share the sequences, and shard parameters as well
        tensor: Tensor parallelism: devices that share attention heads and the width of the MLP
    """

    data: int = 1
    fsdp: int = -1
    expert: int = 1
    context: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class ComputeConfig:
    """Model computation.

    Args:
        dtype: Data type of activations, and of weights in matrix products
        param_dtype: Data type of parameters and optimizer state
        remat: Activations to recompute in the backward pass: none, all but attention, or all (full)
        scan_layers: Compile one layer for all; false compiles each, for small models on a CPU
        attention: Attention implementation; auto uses cudnn on NVIDIA, splash on TPU, otherwise xla
        loss_chunk: Number of tokens per device whose logits exist at once
    """

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    param_dtype: Literal["bfloat16", "float32"] = "float32"
    remat: Literal["none", "attention", "full"] = "attention"
    scan_layers: bool = True
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    loss_chunk: int = 2048
