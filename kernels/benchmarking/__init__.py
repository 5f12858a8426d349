"""The benchmark of the kernels: cases, programs, timing, a whole step; its command is bench.py."""
