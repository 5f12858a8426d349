"""Supervised fine-tuning: loss, optimizer, one jitted step, checkpoints."""
