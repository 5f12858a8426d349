"""One completion in progress, as the scheduler sees it."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxs1.decoding.controls import SequenceLimits
from jaxs1.decoding.outputs import TokenLog
from jaxs1.decoding.params import Request
from jaxs1.decoding.scoring import TokenScores
from jaxs1.decoding.tokenized_thinking import TokenizedThinking


@dataclass(eq=False)
class Sequence:
    """One completion in progress.

    Args:
        number: number of its request
        sample: index among the request's completions
        request: prompt and parameters
        thinking: thinking parameters in token ids
        prompt: token ids, start of thinking included
        limits: budget and maximum length
        first: the request's first sequence, whose pages of the prompt this one shares; None: itself
        siblings: of a first sequence, the others that have not been admitted yet
        pages: pages of the cache
        shared_pages: of a first sequence, the prompt's pages, held until all siblings are admitted
        num_prefilled: tokens of the prompt that are in the cache
        prefix_tokens: those that were there before
        names: names of the prompt's full pages, the last token apart; without the prefix cache none
        log: tokens generated so far
        note: remark about settings that could not be honoured
        ended_by_client: whether its thinking was ended by `Scheduler.end_thinking`
        scores: of a first sequence, its prompt's scores if the request wants them, as in
            `scoring.joined`
    """

    number: int
    sample: int
    request: Request
    thinking: TokenizedThinking
    prompt: list[int]
    limits: SequenceLimits
    first: Sequence | None = None
    siblings: int = 0
    pages: list[int] = field(default_factory=list)
    shared_pages: list[int] = field(default_factory=list)
    num_prefilled: int = 0
    prefix_tokens: int = 0
    names: list[bytes] = field(default_factory=list)
    log: TokenLog = field(default_factory=TokenLog)
    note: str | None = None
    ended_by_client: bool = False
    scores: list[tuple[TokenScores, int, int]] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        """Whether the prompt is cached, except for the last token, which decoding begins with."""
        return self.num_prefilled >= len(self.prompt) - 1

    @property
    def num_to_prefill(self) -> int:
        """Tokens of the prompt that are still to be prefilled."""
        return len(self.prompt) - 1 - self.num_prefilled

    @property
    def num_cached(self) -> int:
        """Positions that prompt, completion and a surplus have reached at most."""
        return len(self.prompt) + len(self.log.tokens) + self.log.surplus
