"""The benchmark of the kernels: cases, programs, timing, a decoding step. Its command: bench.py."""
