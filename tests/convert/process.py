"""One of several processes that load checkpoints; started by `test_exchange.py` as a module.

It stores how many bytes it read, and its shards.
"""

import pickle
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from convert import exchange, safetensors_io
from convert.weights import open_weights
from jaxs1.model.sharding import make_sharding_rules
from tests.convert.checkpoints import MESHES, load


def record_sizes():
    """A list of the bytes of every read from now on."""
    sizes, lock, read_at = [], threading.Lock(), safetensors_io.read_at

    def counted(*args):
        block = read_at(*args)
        with lock:
            sizes.append(block.nbytes)
        return block

    safetensors_io.read_at = counted
    return sizes


def shards(params):
    """path -> the distinct shards on this process's devices: index and bits."""
    return {
        path: {(str(s.index), np.asarray(s.data).tobytes()) for s in array.addressable_shards}
        for path, array in flatten_dict(params, sep=".").items()
    }


#: So that messages go in several blocks [bytes].
SMALL_BLOCKS = 2048


def main(port, count, index, output, *sources):
    jax.distributed.initialize(
        f"localhost:{port}", int(count), int(index), cluster_detection_method="deactivate"
    )
    exchange.BLOCK_BYTES = SMALL_BLOCKS
    results, sizes = {}, record_sizes()
    for source in sources:
        for mesh in MESHES:
            weights = open_weights(source)
            sizes.clear()
            params = load(weights, make_sharding_rules(mesh), jnp.bfloat16)
            results[source, str(mesh)] = {"bytes": sum(sizes), "shards": shards(params)}
    with open(output, "wb") as file:
        pickle.dump(results, file)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
