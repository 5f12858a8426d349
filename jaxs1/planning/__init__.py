"""Compile and estimate a training run for hardware that is not here."""
