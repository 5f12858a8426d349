"""Bit-exact conversion between Hugging Face weights and Orbax checkpoints."""
