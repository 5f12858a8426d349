"""GPU kernels (none yet); imports nothing of jaxs1."""
