"""Hugging Face checkpoints to ours and back, bit by bit."""
