"""Orbax checkpoints by chunks: parts of any bounds, chunks of several layers, damage."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from convert import mapping, orbax_io
from convert.from_hf import from_hf
from convert.weights import open_weights
from jaxs1.config import UserError
from tests.convert.checkpoints import make_hf

GATE = "layers.mlp.gate.kernel"


def full(shape):
    return tuple(slice(0, n) for n in shape)


@pytest.fixture
def params(tmp_path):
    from_hf(make_hf(tmp_path / "src", layers=3), tmp_path / "orbax")
    return tmp_path / "orbax/params"


def test_any_part_is_that_of_the_whole_array(params):
    array = orbax_io.read_arrays(params)[GATE]
    expected = np.asarray(array.store[...].read().result())
    assert array.shape == expected.shape == (3, 28, 24)
    assert array.chunk == (1, 28, 24)
    rng = np.random.default_rng(0)
    for _ in range(50):
        ends = [np.sort(rng.choice(n + 1, 2, replace=False)) for n in array.shape]
        part = tuple(slice(int(a), int(b)) for a, b in ends)
        assert array.read(part).tobytes() == expected[part].tobytes()
    for layer in range(3):  # a chunk is read without tensorstore
        part = (slice(layer, layer + 1), *full(array.shape)[1:])
        assert array.read(part).tobytes() == expected[part].tobytes()


def test_the_last_chunk_of_several_is_padded(tmp_path, monkeypatch):
    monkeypatch.setattr(mapping, "PIECE_ELEMENTS", 500)
    from_hf(make_hf(tmp_path / "src", tied=False), tmp_path / "orbax")
    arrays = orbax_io.read_arrays(tmp_path / "orbax/params")
    embedding = arrays["embedding"]
    assert embedding.shape[0] % embedding.chunk[0]
    sizes = {f.stat().st_size for f in (tmp_path / "orbax/params/embedding").glob("*.0")}
    assert sizes == {np.prod(embedding.chunk) * 2}
    weights = open_weights(tmp_path / "src")
    for piece in mapping.pieces(weights.architecture):
        assert arrays[piece.param].read(piece.index).tobytes() == weights.read(piece).tobytes()


def test_compressed_chunks_of_several_layers_are_read(tmp_path):
    tree = {"layers": {"x": jax.numpy.arange(60, dtype=jax.numpy.float32).reshape(5, 4, 3)}}
    with ocp.PyTreeCheckpointer(use_ocdbt=False) as checkpointer:
        checkpointer.save(tmp_path / "params", tree)
    array = orbax_io.read_arrays(tmp_path / "params")["layers.x"]
    assert not array.plain
    assert array.chunk == (5, 4, 3)
    found = array.read((slice(2, 3), slice(0, 4), slice(0, 3)))
    assert (found == np.arange(24, 36).reshape(1, 4, 3)).all()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda chunk: chunk.unlink(), "has 0 bytes, must have 1344"),
        (lambda chunk: chunk.write_bytes(chunk.read_bytes()[:-1]), "has 1343 bytes"),
    ],
)
def test_a_damaged_chunk_is_named(damage, message, params):
    array = orbax_io.read_arrays(params)[GATE]
    damage(params / GATE / "1.0.0")
    array.read((slice(0, 1), *full(array.shape)[1:]))
    with pytest.raises(UserError, match=rf"1\.0\.0: {message}"):
        array.read((slice(1, 2), *full(array.shape)[1:]))


def test_a_folder_without_arrays_is_refused(tmp_path):
    with ocp.PyTreeCheckpointer(use_ocdbt=True) as checkpointer:
        checkpointer.save(tmp_path / "params", {"x": np.ones(3)})
    with pytest.raises(UserError, match=r"contains no arrays; .*use_ocdbt=False"):
        orbax_io.read_arrays(tmp_path / "params")
