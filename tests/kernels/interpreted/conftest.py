"""Tests of interpreted kernels run in processes of their own: see ../test_interpreted.py.

Triton decides between compiler and interpreter when it is imported, and transformers imports it.
"""

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
