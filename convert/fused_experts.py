"""Experts in the layout that transformers 5 computes with: one tensor for all experts of a layer.

    model.layers.3.mlp.experts.gate_up_proj    [E, 2 M, D], gate before up
    model.layers.3.mlp.experts.down_proj       [E, D, M]

`save_pretrained(..., save_original_format=False)` writes it; usually each expert has tensors of its
own. The part of an expert is contiguous in the file, so it is an entry like any other.
"""

from __future__ import annotations

import dataclasses
import re

from convert.safetensors_io import Entry

_FUSED = re.compile(r"(.*\.mlp\.experts)\.(gate_up_proj|down_proj)")
_PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def split_experts(entries: dict[str, Entry]) -> dict[str, Entry]:
    """The same tensors, with those of all experts divided into those of each."""
    found: dict[str, Entry] = {}
    for name, entry in entries.items():
        match = _FUSED.fullmatch(name)
        parts = _PARTS[match[2]] if match else ()
        if match is None or len(entry.shape) != 3 or entry.shape[1] % len(parts):
            found[name] = entry
            continue
        count, rows, columns = entry.shape
        shape = (rows // len(parts), columns)
        for i in range(count * len(parts)):
            expert, part = divmod(i, len(parts))
            one = dataclasses.replace(entry, shape=shape)
            own = f"{match[1]}.{expert}.{parts[part]}.weight"
            found[own] = dataclasses.replace(one, start=entry.start + i * one.nbytes)
    return found
