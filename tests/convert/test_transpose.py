import numpy as np
import pytest

from convert import transpose

SHAPES = [
    (5,),
    (1, 7),
    (123, 123),
    (600, 300),
    (1, 300, 6, 8),
    (1, 6, 8, 300),
    (3, 1, 1030),
    (4, 0),
]


def views(shape):
    """Arrays of a shape whose memory is laid out in every order of the axes."""
    random = np.random.default_rng(0)
    for order in {tuple(random.permutation(len(shape))) for _ in range(10)}:
        memory = random.integers(0, 1 << 16, [shape[i] for i in order], dtype=np.uint16)
        yield memory.transpose(np.argsort(order))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_copy_and_bands_are_exact(shape, dtype, monkeypatch):
    monkeypatch.setattr(transpose, "BAND_BYTES", 2000)
    for source in views(shape):
        source = source.astype(dtype)
        target = np.zeros((2, *shape), dtype)
        transpose.copy(target[1], source)
        assert np.array_equal(target[1], source)
        assert not target[0].any()
        parts = [part.copy() for part in transpose.bands(source)]
        assert all(part.flags.c_contiguous for part in parts)
        flat = np.concatenate([part.reshape(-1) for part in parts]) if parts else []
        assert np.array_equal(flat, source.reshape(-1))


def test_copy_keeps_the_bits_of_nans():
    bits = np.arange(0x7F80, 0x7F80 + 600 * 100, dtype=np.uint32).reshape(600, 100) << 8
    target = np.zeros((100, 600), np.float32)
    transpose.copy(target, bits.view(np.float32).T)
    assert np.array_equal(target.view(np.uint32), bits.T)
