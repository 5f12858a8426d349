"""lm-evaluation-harness on our engine, within a thinking budget:

    python -m jaxs1.lm_eval run --model jaxs1 --model_args pretrained=DIR,thinking_max=512 \\
        --tasks gsm8k --apply_chat_template --gen_kwargs thinking_max=256

The arguments are the harness's own (`pip install 'jaxs1[lm-eval]'`). Settings of thinking are
`thinking_max`, `thinking_num_waits` and so on, in --model_args for all requests or in --gen_kwargs.
A chat thinks; a raw prompt does only if a setting of thinking is given. Stop strings of a task act
on the answer only.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from jaxs1.config import UserError, run_command
from jaxs1.data.conversation import Conversation
from jaxs1.data.messages import clean_messages
from jaxs1.data.text import encode
from jaxs1.decoding.loading import EngineConfig, load_engine
from jaxs1.decoding.outputs import Completion
from jaxs1.decoding.params import (
    Request,
    SamplingParams,
    ThinkingParams,
    delimiters_of,
    resolve_preset,
)
from jaxs1.decoding.scheduler import Limits

try:
    import lm_eval.models  # noqa: F401  (registers the names of the harness itself)
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    if __name__ != "__main__":
        raise
    name = str(error.name).partition(".")[0]
    print(f"error: {name} is not installed; pip install 'jaxs1[lm-eval]'", file=sys.stderr)
    sys.exit(2)

#: Prefix of the settings of thinking.
THINKING = "thinking_"
#: Spellings of the budget that the server knows, too.
BUDGETS = ("thinking_token_budget", "thinking_budget")
#: Spellings of the maximum of an answer with its thinking [tokens], as in the harness's models.
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens", "max_length")
DEFAULT_LENGTH = 256
SAMPLING = tuple(field.name for field in dataclasses.fields(SamplingParams))


@register_model("jaxs1")
class HarnessModel(TemplateLM):
    """A model of the harness.

    Args:
        pretrained: Hugging Face folder, hub id, converted checkpoint, or training run
        tokenizer, dtype, impl, weights: see `EngineConfig`
        max_length: maximum length of a sequence [tokens]; None: the model's
        max_num_seqs: sequences that are decoded at the same time
        batch_size, max_batch_size, device: ignored; the engine batches by itself
        settings: `thinking_*`, for all requests

    Raises:
        UserError: a setting is unknown or wrong, or the model cannot be loaded
    """

    def __init__(
        self,
        pretrained: str,
        *,
        tokenizer: str | None = None,
        dtype: Any = "auto",
        impl: Any = "auto",
        weights: Any = "auto",
        max_length: int | None = None,
        max_num_seqs: int = 16,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
        **settings: Any,
    ):
        super().__init__()
        limits = Limits(max_num_seqs=max_num_seqs, max_seq_len=max_length)
        config = EngineConfig(
            model=pretrained, tokenizer=tokenizer, dtype=dtype, impl=impl, weights=weights,
            limits=limits,
        )  # fmt: skip
        self._given = _thinking(settings)
        if settings:
            raise UserError(f"model_args.{next(iter(settings))}: no such setting")
        self.engine = load_engine(config).engine
        self.tokenizer: Any = self.engine.tokenizer
        self._chats = False

    @property
    def eot_token_id(self) -> int:
        """The end of a text; the context of what has none."""
        return self.tokenizer.eos_token_id

    @property
    def tokenizer_name(self) -> str:
        """Part of the names of cached requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(
        self, chat_history: Sequence[dict[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation; the engine adds the start of thinking.

        Raises:
            UserError: the template rejects it, or its last message is to be continued
        """
        if not add_generation_prompt:
            raise UserError("apply_chat_template: cannot continue a message; gen_prefix is refused")
        self._chats = True
        thinking = resolve_preset(self._params({}), self.tokenizer)
        thinks = thinking.mode != "off"
        messages = clean_messages(list(chat_history), prompt=True)
        text = Conversation(self.tokenizer, messages, thinking.preset).prompt(thinks=thinks)
        return text.removesuffix(delimiters_of(thinking).start or "") if thinks else text

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Token ids of a text, without any that the tokenizer would add."""
        return encode(string, self.tokenizer)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Answers, cut before the first stop string; the thinking is not a part of them."""
        prepared = [self._request(*request.args) for request in requests]
        answers = [""] * len(prepared)
        for index, (done,) in self.engine.run([request for request, _ in prepared]):
            if done.error is not None:
                raise UserError(f"request {index}: {done.error}")
            answers[index] = self._answer(done, prepared[index][1])
            self.cache_hook.add_partial("generate_until", requests[index].args, answers[index])
        return answers

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows of the context that overlap by one token."""
        pairs: list[tuple[list[int], list[int]]] = []
        bounds = [0]
        for request in requests:
            ids = self.tok_encode(request.args[0])
            windows = get_rolling_token_windows(ids, self.prefix_token_id, self._longest - 1, 1)
            pairs += [make_disjoint_window(window) for window in windows]
            bounds.append(len(pairs))
        sums = [sum(scores.logprobs) for scores in self.engine.score(pairs)]
        return [sum(sums[i:j]) for i, j in itertools.pairwise(bounds)]

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        pairs = [self._fitted(prompt, following) for _, prompt, following in requests]
        found = [(sum(s.logprobs), s.is_greedy) for s in self.engine.score(pairs)]
        for (texts, *_ids), result in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, result)
        return found

    @property
    def _longest(self) -> int:
        """Tokens that can be scored with their context; the engine writes one more."""
        return self.engine.context - 1

    def _fitted(self, prompt: list[int], following: list[int]) -> tuple[list[int], list[int]]:
        """The end of the prompt that fits in front of what follows."""
        left = self._longest - len(following)
        if left < 1:
            raise UserError(
                f"continuation of {len(following)} tokens: does not fit into the context of "
                f"{self.engine.context}; raise max_length"
            )
        return prompt[-left:], following

    def _request(self, text: str, given: Any) -> tuple[Request, tuple[str, ...]]:
        """A request and its stop strings."""
        given = dict(given)
        until = given.pop("until", None) or ()
        lengths = [given.pop(name) for name in LENGTHS if name in given]
        if not given.pop("do_sample", True):
            given["temperature"] = 0.0
        thinking = self._params(_thinking(given))
        sampling = {name: given.pop(name) for name in SAMPLING if name in given}
        seed = int(given.pop("seed", 0))
        if given:
            raise UserError(f"gen_kwargs.{next(iter(given))}: no such setting")
        request = Request(
            self.tok_encode(text),
            thinking,
            SamplingParams(**sampling),
            seed=seed,
            max_tokens=int(lengths[0]) if lengths else DEFAULT_LENGTH,
        )
        return request, (until,) if isinstance(until, str) else tuple(until)

    def _params(self, settings: dict[str, Any]) -> ThinkingParams:
        changes = {**self._given, **settings}
        if not self._chats and not changes:
            changes["mode"] = "off"
        return ThinkingParams(**changes)

    def _answer(self, done: Completion, until: Sequence[str]) -> str:
        """The text of the answer before the first stop; of a chat without blanks at its ends."""
        text = done.answer
        if not self._chats:
            text = self.tokenizer.decode(done.answer_ids, skip_special_tokens=True)
        ends = [at for stop in until if stop and (at := text.find(stop)) >= 0]
        text = text[: min(ends, default=len(text))]
        return text.strip() if self._chats else text


def _thinking(settings: dict[str, Any]) -> dict[str, Any]:
    """Take the settings of thinking out of others."""
    known = {field.name for field in dataclasses.fields(ThinkingParams)}
    taken = {name: settings.pop(name) for name in list(settings) if name.startswith(THINKING)}
    found = dict(_named(taken))
    if wrong := [name for name in found if name not in known]:
        raise UserError(
            f"{THINKING}{wrong[0]}: no such setting; known are "
            + ", ".join(sorted(f"{THINKING}{name}" for name in known))
        )
    return found


def _named(settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names of fields; the budget also as the server's clients write it."""
    for name, value in settings.items():
        field = "max" if name in BUDGETS else name.removeprefix(THINKING)
        yield field, (value,) if field == "wait_strings" and isinstance(value, str) else value


def main(_: Sequence[str] | None = None) -> int:
    """Run the harness's command."""
    cli_evaluate()
    return 0


if __name__ == "__main__":
    run_command(main)
