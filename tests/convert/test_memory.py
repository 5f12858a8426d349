"""A conversion at the size of the 0.5B: its memory is that of a few tensors, not of the model."""

import json
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np

from convert import mapping, safetensors_io, to_hf
from jaxs1.model.architecture import Architecture
from tests.convert.checkpoints import CONFIGS

#: Not `ru_maxrss`: it counts what the parent process held when it started this one.
MEASURED = """
import re, sys
from convert import from_hf, to_hf
{module}.main(sys.argv[1:])
print(1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]))
"""


def write_random(folder, config):
    """A Hugging Face folder of random bits, written piece by piece."""
    architecture = Architecture.from_hf(config, "test")
    dtypes = dict.fromkeys(mapping.parameters(architecture), np.dtype(ml_dtypes.bfloat16))
    writer = to_hf.Writer(architecture, dtypes, 400_000_000)
    folder.mkdir()
    writer.prepare(folder)
    random = np.random.default_rng(0)
    for piece in mapping.pieces(architecture):
        bits = random.integers(0, 1 << 16, piece.size, dtype=np.uint16)
        writer.write(folder, piece, bits.view(ml_dtypes.bfloat16).reshape(piece.shape))
    (folder / "config.json").write_text(json.dumps(config))
    return architecture


def test_peak_memory_of_the_0_5b(tmp_path):
    src, ours, hf = tmp_path / "src", tmp_path / "ours", tmp_path / "hf"
    try:
        architecture = write_random(src, CONFIGS["qwen2.5-0.5b"])
        largest = 2 * architecture.vocab_size * architecture.hidden_size
        for module, a, b in (("from_hf", src, ours), ("to_hf", ours, hf)):
            command = [sys.executable, "-c", MEASURED.format(module=module), str(a), str(b)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            peak = int(done.stdout)
            assert peak <= 4 * largest + 1.5e9
            assert peak <= 1e9, "less than the model's weights alone"
        before, after = safetensors_io.read_folder(src), safetensors_io.read_folder(hf)
        for name, entry in before.items():
            rows = slice(0, entry.shape[0])
            a, b = (safetensors_io.read_rows(e, rows).view(np.uint16) for e in (entry, after[name]))
            assert np.array_equal(a, b), name
    finally:
        for folder in (src, ours, hf):
            shutil.rmtree(folder, ignore_errors=True)
