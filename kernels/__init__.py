"""The decoding step as Triton kernels; of jaxs1, only the two commands know config."""
