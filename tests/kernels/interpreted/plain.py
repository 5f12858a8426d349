"""One decoding layer in numpy and float64, one sequence and one token at a time: the oracle."""

import numpy as np


def rms_norm(x, scale, eps):
    x = np.asarray(x, np.float64)
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * scale


def rope(x_NH, position, theta):
    half = x_NH.shape[-1] // 2
    # the angle is a float32, as everywhere: at position 4097 that alone is 2e-4 of a turn
    frequency = np.float32(theta) ** (-np.arange(half, dtype=np.float32) / np.float32(half))
    angle = (np.float32(position) * frequency).astype(np.float64)
    a, b = x_NH[..., :half], x_NH[..., half:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attend(q_NH, k_TKH, v_TKH):
    """Softmax attention of one token over T keys."""
    heads, group = [], len(q_NH) // k_TKH.shape[1]
    for n, q in enumerate(q_NH):
        scores = k_TKH[:, n // group] @ q / np.sqrt(len(q))
        weights = np.exp(scores - scores.max())
        heads.append(weights @ v_TKH[:, n // group] / weights.sum())
    return np.stack(heads)


def swiglu(gate, up):
    return gate / (1 + np.exp(-gate)) * up


def project(x, weights):
    y = np.tensordot(x, np.asarray(weights["kernel"], np.float64), 1)
    return y + weights["bias"] if "bias" in weights else y


def qkv(weights, x_D, position, *, eps, theta):
    """q, k and v of one token, before it attends."""
    attn = weights["attn"]
    x_D = rms_norm(x_D, weights["attn_norm"]["scale"], eps)
    q, k, v = (project(x_D, attn[name]) for name in "qkv")
    if "q_norm" in attn:
        q = rms_norm(q, attn["q_norm"]["scale"], eps)
        k = rms_norm(k, attn["k_norm"]["scale"], eps)
    return rope(q, position, theta), rope(k, position, theta), v


def layer(weights, x_D, k_TKH, v_TKH, position, *, eps, theta):
    """One token through a layer; k and v are of the tokens before it.

    Returns the token's residual stream, key and value.
    """
    q, k, v = qkv(weights, x_D, position, eps=eps, theta=theta)
    mixed = attend(q, np.concatenate([k_TKH, k[None]]), np.concatenate([v_TKH, v[None]]))
    x_D = x_D + np.tensordot(mixed, np.asarray(weights["attn"]["o"]["kernel"], np.float64), 2)
    n = rms_norm(x_D, weights["mlp_norm"]["scale"], eps)
    gate, up = (project(n, weights["mlp"][name]) for name in ("gate", "up"))
    return x_D + project(swiglu(gate, up), weights["mlp"]["down"]), k, v
