"""Reinforcement learning: questions to roll-outs, rewards, advantages and the batches of a step."""
