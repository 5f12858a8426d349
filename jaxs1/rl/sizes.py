"""Sizes of a run: the longest sequence, the context, the rows; checked before anything runs."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxs1.config import UserError
from jaxs1.decoding.controls import capacity
from jaxs1.decoding.tokenized_thinking import TokenizedThinking
from jaxs1.rl.config import GrpoConfig

#: Lengths of rows are multiples of this [tokens].
ROW_MULTIPLE = 128


class Sizes(NamedTuple):
    """Sizes of a run [tokens].

    Args:
        completion: the longest possible completion of a roll-out
        context: maximum length of a sequence, prompt included
        row: length of the rows of a batch
    """

    completion: int
    context: int
    row: int


def largest_budget(config: GrpoConfig) -> int:
    """The largest budget of training and evaluation [tokens]."""
    evaluated = config.held_out.budgets if config.held_out.every else ()
    return max((config.budgets.largest, *evaluated))


def sizes_of(config: GrpoConfig, thinking: TokenizedThinking, prompt: int, maximum: int) -> Sizes:
    """The sizes of a run.

    Args:
        config: settings of the run
        thinking: its thinking parameters in token ids
        prompt: tokens of the longest prompt, without the start of thinking
        maximum: maximum length of a sequence that the model supports

    Raises:
        UserError: a sequence does not fit into the context, or into a row.
    """
    completion = capacity(thinking, config.budgets.largest, maximum)
    trained = prompt + len(thinking.start) + completion
    needed = prompt + len(thinking.start) + capacity(thinking, largest_budget(config), maximum)
    context = config.limits.max_seq_len or needed
    if needed > min(context, maximum):
        name = "the model's context" if needed > maximum else "limits.max_seq_len"
        raise UserError(
            f"budgets.values={list(config.budgets.values)}: the longest prompt, budget, Waits and "
            f"answer need {needed} tokens, more than {name}={min(context, maximum)}; lower the "
            "budgets or thinking.max_answer_tokens, or leave out the longest questions"
        )
    rounded = -(-trained // ROW_MULTIPLE) * ROW_MULTIPLE
    row = config.row_length or rounded
    if row < trained:
        raise UserError(
            f"row_length={row}: must hold the longest sequence of {trained} tokens; give {rounded} "
            "or leave it out"
        )
    return Sizes(completion, context, row)


def gated_ids(thinking: TokenizedThinking, tokenizer: Any) -> tuple[int, ...]:
    """The ends of thinking, which a minimum and Waits forbid for a while.

    Raises:
        UserError: one of them has several tokens, so what is forbidden depends on the last ones.
    """
    params = thinking.thinking
    longer = [ids for ids in thinking.ends if len(ids) > 1]
    if longer and (params.min or params.num_waits):
        raise UserError(
            f"thinking.delimiters.ends: {tokenizer.decode(list(longer[0]))!r} is {len(longer[0])} "
            "tokens; with thinking.min or thinking.num_waits, training needs ends of one token"
        )
    return tuple(ids[0] for ids in thinking.ends if len(ids) == 1)
