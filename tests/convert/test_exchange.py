"""Several processes load a checkpoint: each reads its share, and all get what one would load."""

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from convert import exchange, mapping
from convert.exchange import Exchange, ahead, pack, take_turns, unpack
from convert.from_hf import from_hf
from convert.weights import open_weights
from jaxs1.model.architecture import Architecture
from jaxs1.model.sharding import make_sharding_rules
from tests.conftest import ONE_DEVICE, ROOT
from tests.convert.checkpoints import CONFIGS, MESHES, load, random_tensors, reduced, write_hf
from tests.convert.process import shards

COUNT = 4


def largest_piece(architecture):
    return max(piece.size for piece in mapping.pieces(architecture))


@pytest.mark.parametrize("name", ["qwen2.5-0.5b", "qwen2.5-32b"])
@pytest.mark.parametrize("count", [1, 3, 4, 16])
def test_every_piece_has_one_reader_and_none_reads_much_more(name, count):
    architecture = Architecture.from_hf(CONFIGS[name], "test")
    by_path = {}
    for piece in mapping.pieces(architecture):
        by_path.setdefault(piece.param, []).append(piece)
    read, seen = [0] * count, []
    for parts in by_path.values():
        turns = [*take_turns(parts, 2, read)]
        assert all(len(turn) == count for turn in turns)
        assert len(turns) == -(-len(parts) // count)
        seen += [piece.name for turn in turns for piece in turn if piece]
    assert sorted(seen) == sorted(piece.name for piece in mapping.pieces(architecture))
    total = 2 * architecture.num_parameters
    assert sum(read) == total
    assert max(read) <= total / count + 2 * largest_piece(architecture)


def test_a_message_holds_what_a_process_holds():
    architecture = Architecture.from_hf(reduced("qwen2.5-32b"), "test")
    piece = next(x for x in mapping.pieces(architecture) if x.param == "layers.mlp.gate.kernel")
    hf = np.random.default_rng(0).integers(0, 1 << 16, piece.hf_shape, np.uint16)
    block = piece.to_param(hf)
    _, d, f = piece.shape
    left = (slice(0, 2), slice(0, d), slice(0, f // 2))
    corner = (slice(0, 2), slice(d // 2, d), slice(f // 2, f))
    other_layer = (slice(1, 2), slice(0, d), slice(0, f))
    held = [[left, corner], [other_layer], [left, corner], [corner]]
    messages = pack(block, piece, held)
    assert messages[0] is messages[2] and messages[1].size == 0
    found = [*unpack(messages[0], piece, held[0], block.dtype)]
    assert [index[1:] for index, _ in found] == [left[1:], corner[1:]]
    for index, part in found:
        assert index[0] == slice(0, 1)
        np.testing.assert_array_equal(part, hf.T[index[1:]][None])


@pytest.mark.parametrize("length", [1, 1000, 5000])
def test_a_message_arrives_in_blocks(length, monkeypatch):
    monkeypatch.setattr(exchange, "BLOCK_BYTES", 1024)
    message = np.random.default_rng(0).integers(0, 256, length).astype(np.uint8)
    (received,) = Exchange(jax.devices()).send([message], length)
    np.testing.assert_array_equal(received, message)


def test_parts_go_from_each_to_each_and_nothing_else_is_sent():
    mesh = Mesh(np.reshape(jax.devices(), (4, 2)), ("process", "local"))
    sent, received = (
        NamedSharding(mesh, PartitionSpec(*axes))
        for axes in (("process", None, "local"), (None, "process", "local"))
    )
    words = jax.ShapeDtypeStruct((4, 4, 64), jnp.uint32, sharding=sent)
    program = exchange._reshard.lower(words, received).compile().as_text()
    assert " all-to-all(" in program and "all-gather" not in program


def test_results_come_in_order_while_later_jobs_run():
    done = []
    jobs = (partial(lambda i: done.append(i) or i, i) for i in range(9))
    with ThreadPoolExecutor(2) as pool:
        results = ahead(pool, jobs, 3)
        assert next(results) == 0
        pool.submit(int).result()
        assert set(done) <= {0, 1, 2, 3}  # not all at once: a result is a piece in memory
        assert [*results] == [*range(1, 9)]
        with pytest.raises(ZeroDivisionError):
            [*ahead(pool, [lambda: 1 / 0], 1)]


@pytest.mark.slow
def test_four_processes_read_a_quarter_each_and_load_what_one_does(tmp_path):
    config = reduced("qwen2.5-32b", layers=6) | {"vocab_size": 64}
    hf = write_hf(tmp_path / "hf", config, random_tensors(config, "bfloat16"), num_shards=3)
    from_hf(hf, tmp_path / "orbax")
    sources = [str(hf), str(tmp_path / "orbax")]
    port = int(np.random.default_rng().integers(20000, 60000))
    outputs = [tmp_path / str(i) for i in range(COUNT)]
    devices = f"--xla_force_host_platform_device_count={8 // COUNT} {ONE_DEVICE}"
    group = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.convert.process", str(port), str(COUNT), str(i),
             str(output), *sources],
            cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": devices},
        )
        for i, output in enumerate(outputs)
    ]  # fmt: skip
    try:
        assert [process.wait(240) for process in group] == [0] * COUNT
    finally:
        for process in group:
            process.kill()
    found = [pickle.loads(output.read_bytes()) for output in outputs]
    architecture = open_weights(hf).architecture
    total, piece = 2 * architecture.num_parameters, 2 * largest_piece(architecture)
    for source in sources:
        for mesh in MESHES:
            of_each = [results[source, str(mesh)] for results in found]
            read = [x["bytes"] for x in of_each]
            assert sum(read) == total  # nothing is read twice
            assert max(read) <= total / COUNT + piece
            expected = shards(load(open_weights(hf), make_sharding_rules(mesh), jnp.bfloat16))
            for path, of_one in expected.items():
                assert set.union(*(x["shards"][path] for x in of_each)) == of_one, (mesh, path)
