"""Attention for TPU and NVIDIA, as far as it can be tested without either."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxs1.config import UserError
from jaxs1.model import ops
from tests.numerics import assert_close


def packed_rows(dtype=np.float32, heads=(4, 2), width=128):
    rng = np.random.default_rng(0)
    q, k, v = (
        rng.normal(size=(2, 256, n, width)).astype(dtype) for n in (heads[0], *heads[1:] * 2)
    )
    segments = np.repeat([[1, 2, 3, 0], [1, 2, 2, 3]], [100, 60, 60, 36], axis=1)
    return q, k, v, segments.astype(np.int32)


def test_splash_equals_xla():
    """Pallas's interpreter runs the TPU kernel on CPU."""
    q, k, v, segments = packed_rows()
    seen = (segments > 0)[..., None, None]
    expected = ops.attention_xla(q, k, v, segments) * seen
    found = ops.attention_splash(q, k, v, segments, interpret=True) * seen
    assert_close(found, expected, "operator = plain formula")


def test_splash_lowers_for_tpu():
    q, k, v, segments = packed_rows()

    def loss(q, k, v):
        return jnp.sum(ops.attention_splash(q, k, v, segments))

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    text = gradient.trace(q, k, v).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") >= 2  # forward and backward


def test_cudnn_lowers_for_nvidia_with_packed_offsets(monkeypatch):
    """Traced as if an H100 with cuDNN 9.10 were there: the call's operands are what we mean."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91002)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda wanted: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda wanted: wanted == "9.0")
    q, k, v, segments = packed_rows(jnp.bfloat16)
    seen = {}
    inner = cudnn.dot_product_attention

    def record(*args, **kwargs):
        seen.update(kwargs)
        return inner(*args, **kwargs)

    monkeypatch.setattr(cudnn, "dot_product_attention", record)
    lengths = ops.segment_lengths(segments, 4)
    np.testing.assert_array_equal(lengths, [[100, 60, 60, 0], [100, 120, 36, 0]])

    def loss(q, k, v):
        return jnp.sum(ops.attention_cudnn(q, k, v, segments, 4).astype(jnp.float32))

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    text = gradient.trace(q, k, v).lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmha" in text
    assert seen["mask_type"] == cudnn.MaskType.PADDING_CAUSAL
    assert seen["q_offsets"].shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "platform", "dtype", "chosen"),
    [
        ("auto", "cpu", "float32", "xla"),
        ("auto", "gpu", "bfloat16", "cudnn"),
        ("auto", "gpu", "float32", "xla"),
        ("auto", "tpu", "bfloat16", "splash"),
        ("xla", "gpu", "bfloat16", "xla"),
        ("cudnn", "gpu", "bfloat16", "cudnn"),
    ],
)
def test_choice_of_attention(name, platform, dtype, chosen):
    assert ops.resolve_attention(name, platform, dtype, 90) == chosen


@pytest.mark.parametrize(
    ("name", "platform", "dtype"),
    [("cudnn", "cpu", "bfloat16"), ("cudnn", "gpu", "float32"), ("splash", "gpu", "bfloat16")],
)
def test_named_attention_that_cannot_run_is_refused(name, platform, dtype):
    with pytest.raises(UserError, match=rf"compute\.attention={name}: needs .* use auto"):
        ops.resolve_attention(name, platform, dtype, 90)
