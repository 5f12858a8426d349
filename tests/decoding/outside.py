"""Budget forcing as s1 does it: an engine driven from outside, prefilling again for every round.

`readme` follows the loop of s1's README and `harness` s1's fork of lm-evaluation-harness, rule by
rule, in token ids, on top of `Engine.generate`, which behaves as the engine that s1 used. The
engine's model is a toy whose next token depends on the whole prefix.
"""

from typing import NamedTuple

import numpy as np

STATES = 4999


class Output(NamedTuple):
    """ids with the stop, as the engine reports them; text is what the caller pastes, without."""

    ids: list
    text: list
    finish: str


class Toy:
    """A deterministic language model: the prefix is folded to one number, which has its logits."""

    def __init__(self, vocab, likes, seed=0):
        rng = np.random.default_rng(seed)
        bias = np.zeros(vocab)
        for token, amount in likes.items():
            bias[token] = amount
        self.table_NV = (rng.gumbel(size=(STATES, vocab)) + bias).astype(np.float32)

    @staticmethod
    def fold(prefix):
        number = 0
        for token in prefix:
            number = (number * 31 + token + 1) % STATES
        return number


class Engine:
    """Generation with stops: greedy, or drawn with one row of Gumbel noise for each token."""

    def __init__(self, toy, eos, noise_NV=None):
        self.toy, self.eos, self.noise_NV = toy, set(eos), noise_NV

    def generate(self, prompt, max_tokens, stops, min_tokens=0, *, drawn=0):
        """In a step: min gate, EOS and stops, then the length; `drawn`: tokens before this call."""
        ids, ends = [], self.eos | set(stops)
        while True:
            logits = self.toy.table_NV[Toy.fold(prompt + ids)].copy()
            if self.noise_NV is not None:
                logits += self.noise_NV[drawn + len(ids)]
            if len(ids) < min_tokens:
                logits[list(ends)] = -np.inf
            ids.append(int(logits.argmax()))
            if ids[-1] in ends:
                return Output(ids, ids[:-1], "stop")
            if len(ids) == max_tokens:
                return Output(ids, ids, "length")


def readme(
    engine, prompt, *, thinking_budget, num_ignore, wait, stops, answer_stops, max_answer_tokens
):
    """The ids behind the prompt."""
    context = list(prompt)
    out = engine.generate(context, thinking_budget, stops)
    left = thinking_budget
    for _ in range(num_ignore):
        left -= len(out.ids)
        if left > 0:
            context += out.text + wait
            drawn = len(context) - len(prompt)
            out = engine.generate(context, left, stops, min_tokens=1, drawn=drawn)
    context += out.text
    drawn = len(context) - len(prompt)
    context += engine.generate(context, max_answer_tokens, answer_stops, drawn=drawn).ids
    return context[len(prompt) :]


def harness(engine, prompt, *, thinking_budget, num_ignore, wait, stops, close, answer_prefix,
            newline, newlines, answer_stops, max_answer_tokens):  # fmt: skip
    """The ids behind the prompt, where the thinking among them ends, and the surplus cut off."""
    kept = []
    min_tokens = 0 if num_ignore is None else 1
    rounds = 1 if num_ignore is None else num_ignore + 1
    for r in range(rounds):
        context = list(prompt) + kept
        out = engine.generate(context, thinking_budget, stops, min_tokens, drawn=len(kept))
        if out.finish == "length" or r == rounds - 1:
            kept += out.text
            break
        kept += out.text + wait
    surplus = kept[thinking_budget:]
    kept = kept[:thinking_budget]
    if out.finish == "length":
        broken = (kept or list(prompt))[-1] in newlines
        end = ([] if broken else newline) + close + answer_prefix
    else:
        end = close
    context = list(prompt) + kept + end
    drawn = len(kept + surplus + end)
    context += engine.generate(context, max_answer_tokens, answer_stops, drawn=drawn).ids
    return context[len(prompt) :], len(kept), surplus
