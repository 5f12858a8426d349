"""The interface of an engine.

`submit` queues a request, `step` runs the model for some steps and returns the new tokens; `run`
and `stream` call these two in a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from jaxs1.config import UserError
from jaxs1.decoding.buckets import PrefillShape
from jaxs1.decoding.controls import SequenceLimits
from jaxs1.decoding.outputs import Completion, StreamOutput
from jaxs1.decoding.params import Request, ThinkingParams
from jaxs1.decoding.prefill_batches import PrefillBudget
from jaxs1.decoding.scoring import TokenScores


class Load(NamedTuple):
    """How much an engine has to do.

    Args:
        running: sequences that have pages
        waiting: sequences that wait for pages or rows
        waiting_tokens: tokens of their prompts
        pages: pages of the KV cache
        free_pages: those that no sequence needs
    """

    running: int
    waiting: int
    waiting_tokens: int
    pages: int
    free_pages: int


class Steps(NamedTuple):
    """Number of decode steps of one run, and how much is prefilled before them.

    Args:
        limit: maximum; None: limits.decode_steps, which bounds it too
        first: maximum of a run with prefill, or with first tokens of sequences; None: `limit`
        eager: stop as soon as a sequence has ended, to make room for those that wait
        prefill: time for prefill before them, see `PrefillBatches.plan`
    """

    limit: int | None = None
    first: int | None = None
    eager: bool = False
    prefill: PrefillBudget | None = None


ALL_STEPS = Steps()


class BaseEngine:
    """Completes requests: one engine, or several that share the work."""

    tokenizer: Any
    context: int
    submitted = 0
    #: Of the newest run: decode steps, sizes of its prefills, and their time if it was limited [s].
    num_steps = 0
    prefilled: Sequence[PrefillShape] = ()
    prefill_seconds = 0.0

    def check(self, request: Request) -> SequenceLimits:
        """The limits that a request would get; any thread may call it.

        Raises:
            PromptTooLong: the prompt leaves too few tokens of the context
            UserError: the request cannot run for another reason
        """
        raise NotImplementedError

    def submit(self, request: Request, longest: int | None = None) -> int:
        """Queue a request; returns its number. If it is invalid, its completion has an error.

        Args:
            request: prompt and parameters
            longest: longest prompt of the batch [tokens], for thinking.max auto; None: this one's
        """
        raise NotImplementedError

    def cancel(self, number: int) -> None:
        """Drop a request; it gives no more outputs. Unknown and finished requests are ignored."""
        raise NotImplementedError

    def end_thinking(self, number: int) -> bool:
        """Close the thought of a request now, and let it answer; whether it was thinking."""
        raise NotImplementedError

    def load(self) -> Load:
        """How much there is to do."""
        raise NotImplementedError

    def step(
        self, steps: Steps = ALL_STEPS, meanwhile: Callable[[], None] | None = None
    ) -> list[StreamOutput]:
        """Admit requests, prefill part of their prompts, decode some steps; the new tokens.

        Args:
            steps: number of decode steps
            meanwhile: called while the device works
        """
        try:
            self.begin(steps)
        finally:
            if meanwhile is not None:
                meanwhile()
        return self.end()

    def begin(self, steps: Steps = ALL_STEPS) -> None:
        """The first half of `step`: dispatch the work; the device runs it until `end`."""
        raise NotImplementedError

    def end(self) -> list[StreamOutput]:
        """The second half of `step`: wait for the device and return the new tokens."""
        raise NotImplementedError

    @property
    def busy(self) -> bool:
        """Whether any request is unfinished."""
        raise NotImplementedError

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[int, list[Completion]]]:
        """Complete requests.

        Yields:
            index of a request in the given order and its n completions, as requests finish;
            a request that cannot run has completions with finish_reason "error"
        """
        finished: dict[int, list[Completion]] = {}
        requests = list(requests)
        for output in self.stream(requests):
            if output.completion is not None:
                completions = finished.setdefault(output.request, [])
                completions.append(output.completion)
                if len(completions) == requests[output.request].n:
                    del finished[output.request]
                    yield output.request, sorted(completions, key=lambda c: c.index)

    def score(self, pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> list[TokenScores]:
        """Log-probabilities of given tokens.

        Args:
            pairs: token ids of a prompt, at least one, and of what follows it

        Returns:
            scores of the second part of each pair

        Raises:
            UserError: a prompt is empty, or a pair does not fit into the context
        """
        pairs = [(list(prompt), list(following)) for prompt, following in pairs]
        requests = [scoring_request(*pair) for pair in pairs]
        for request in requests:
            self.check(request)
        found: dict[int, TokenScores] = {}
        for index, (completion,) in self.run(requests):
            assert completion.prompt_scores is not None
            found[index] = completion.prompt_scores.since(len(pairs[index][0]) - 1)
        return [found[index] for index in range(len(pairs))]

    def stream(self, requests: Iterable[Request]) -> Iterator[StreamOutput]:
        """Complete requests; yields their new tokens. Numbers start at 0 in every call."""
        first = self.submitted
        requests = list(requests)
        longest = max((len(r.prompt_ids) for r in requests), default=0)
        for request in requests:
            self.submit(request, longest)
        while self.busy:
            for output in self.step():
                yield output._replace(request=output.request - first)


def scoring_request(prompt: Sequence[int], following: Sequence[int]) -> Request:
    """The request whose completion has the scores of `following`, and one token that is of no use.

    Raises:
        UserError: the prompt is empty
    """
    if not prompt:
        raise UserError("prompt: is empty; give at least one token, such as the EOS")
    off = ThinkingParams(mode="off", max_answer_tokens=1, min_answer_tokens=1)
    return Request([*prompt, *following], off, max_tokens=1, prompt_scores=True)
