"""Random layers, and caches whose unused slots are NaN."""

import copy

import numpy as np

from jaxs1.model.quantization import quantize

#: Of tests: D is no multiple of a block and long enough for two slices of k.
SIZES = {"D": 600, "F": 200, "H": 32}


def weights(rng, N, K, *, bias=False, qk_norm=False, D=600, F=200, H=32):
    """Of one layer, float32, biases and norms random too."""

    def normal(*shape, inputs=1):
        return (rng.standard_normal(shape) * inputs**-0.5).astype(np.float32)

    def linear(heads):
        return {"kernel": normal(D, heads, H, inputs=D)} | (
            {"bias": normal(heads, H)} if bias else {}
        )

    def norm(width):
        return {"scale": 1 + 0.2 * normal(width)}

    attn = {"q": linear(N), "k": linear(K), "v": linear(K)}
    attn["o"] = {"kernel": normal(N, H, D, inputs=N * H)}
    if qk_norm:
        attn |= {"q_norm": norm(H), "k_norm": norm(H)}
    mlp = {name: {"kernel": normal(D, F, inputs=D)} for name in ("gate", "up")}
    mlp["down"] = {"kernel": normal(F, D, inputs=F)}
    return {"attn_norm": norm(D), "attn": attn, "mlp_norm": norm(D), "mlp": mlp}


def quantized(weights):
    """A layer with Int8 matrices, and the same layer with the matrices that these stand for."""
    stored, exact = copy.deepcopy(weights), copy.deepcopy(weights)
    for group, names in (("attn", "qkvo"), ("mlp", ("gate", "up", "down"))):
        for name in names:
            w = weights[group][name]["kernel"]
            inputs = 2 if name == "o" else 1
            w_OI = np.ascontiguousarray(np.moveaxis(w, range(inputs), range(-inputs, 0)))
            int8 = quantize(w_OI, inputs)
            stored[group][name]["kernel"] = int8
            dense = dequantized(int8)
            exact[group][name]["kernel"] = np.moveaxis(dense, range(-inputs, 0), range(inputs))
    return stored, exact


def dequantized(int8):
    """The weights that an Int8 stands for, float64 [outputs..., inputs...]."""
    values = int8.values.astype(np.float64)
    return values * int8.scale.reshape(*int8.scale.shape, *[1] * (values.ndim - int8.scale.ndim))


def cache(rng, positions, K, *, S=64, H=32, longest=None):
    """Pages, table and each sequence's own keys and values before the new token.

    Pages are dealt in random order; every slot that no sequence has filled is NaN, and so are the
    pages that nobody owns.
    """
    needed = [p // S + 1 for p in positions]
    width = longest or max(needed)
    order = 1 + rng.permutation(sum(needed) + 2)
    table = np.zeros((len(positions), width), np.int32)
    k_pages = np.full((K, len(order) + 1, S, H), np.nan, np.float32)
    v_pages = k_pages.copy()
    past = []
    for b, position in enumerate(positions):
        table[b, : needed[b]], order = order[: needed[b]], order[needed[b] :]
        k, v = rng.standard_normal((2, position, K, H)).astype(np.float32)
        past.append((k, v))
        for t in range(position):
            k_pages[:, table[b, t // S], t % S] = k[t]
            v_pages[:, table[b, t // S], t % S] = v[t]
    return k_pages, v_pages, table, past
