"""The Python interface to decoding: `LLM`, and `load_model` for the bare network.

llm = LLM("runs/train")
done = llm.chat("How many primes are below 100?", thinking=ThinkingParams(max=2000, num_waits=2))
print(done.thinking, done.answer, done.usage, done.interventions)
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

import jax

from convert.weights import load_params, open_weights
from jaxs1.config import UserError
from jaxs1.data.text import encode
from jaxs1.decoding.base_engine import scoring_request
from jaxs1.decoding.loading import EngineConfig, ParallelConfig, load_engine
from jaxs1.decoding.outputs import Completion, StreamOutput
from jaxs1.decoding.params import Request, SamplingParams, ThinkingParams
from jaxs1.decoding.pieces import Piece, Pieces
from jaxs1.decoding.prompt import prompt_ids
from jaxs1.decoding.scheduler import Limits
from jaxs1.decoding.scoring import TokenScores
from jaxs1.model import transformer
from jaxs1.model.config import ComputeConfig, MeshConfig
from jaxs1.model.sharding import check_divisible, make_sharding_rules

#: Messages with "role" and "content", and the fields that `jaxs1.data.messages` knows.
Conversation = list[dict[str, Any]]


class _Settings(TypedDict, total=False):
    thinking: ThinkingParams | None
    sampling: SamplingParams | None
    seed: int


class LLM:
    """A language model that thinks within a budget.

    Args:
        model: Hugging Face folder, hub id, converted checkpoint, training run, or a step of one
        tokenizer: Hugging Face folder or hub id; None takes the model's own
        dtype: dtype of weights, computation and KV cache; auto is float32 on a CPU and bfloat16
            elsewhere
        impl: implementation of the decode step: xla, bf16x3, triton or pallas; auto takes the
            fastest one that is verified on this device
        weights: int8 quantizes the matrices while they are loaded; auto keeps them
        limits: memory and batch limits of the engine
        parallel: tensor parallelism and replicas

    Raises:
        UserError: the model does not exist, the tokenizer does not match it, or there are too few
            devices or too little memory.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        tokenizer: str | None = None,
        dtype: Literal["auto", "bfloat16", "float32"] = "auto",
        impl: Literal["auto", "xla", "bf16x3", "triton", "pallas"] = "auto",
        weights: Literal["auto", "int8"] = "auto",
        limits: Limits | None = None,
        parallel: ParallelConfig | None = None,
    ):
        config = EngineConfig(
            model=str(model),
            tokenizer=tokenizer,
            dtype=dtype,
            impl=impl,
            weights=weights,
            limits=limits or Limits(),
            parallel=parallel or ParallelConfig(),
        )
        loaded = load_engine(config)
        self.engine, self.tokenizer = loaded.engine, loaded.engine.tokenizer
        self.description = loaded.description
        self._outputs: dict[int, deque[StreamOutput]] = {}

    def __repr__(self) -> str:
        return f"LLM({self.description})"

    @overload
    def chat(  # type: ignore[overload-overlap]
        self, messages: str | Conversation, *, n: Literal[1] = 1, **settings: Unpack[_Settings]
    ) -> Completion: ...
    @overload
    def chat(
        self, messages: str | Conversation, *, n: int, **settings: Unpack[_Settings]
    ) -> list[Completion]: ...
    @overload
    def chat(  # type: ignore[overload-overlap]
        self,
        messages: list[str] | list[Conversation],
        *,
        n: Literal[1] = 1,
        **settings: Unpack[_Settings],
    ) -> list[Completion]: ...
    @overload
    def chat(
        self,
        messages: list[str] | list[Conversation],
        *,
        n: int,
        **settings: Unpack[_Settings],
    ) -> list[list[Completion]]: ...
    def chat(
        self,
        messages: str | Conversation | list[str] | list[Conversation],
        *,
        thinking: ThinkingParams | None = None,
        sampling: SamplingParams | None = None,
        n: int = 1,
        seed: int = 0,
    ) -> Any:
        """Answer a prompt, or many at once, rendered with the model's chat template.

        A prompt is a text (the user's message) or a conversation
        `[{"role": "user", "content": "..."}, ...]`. The result has the shape of the arguments: a
        prompt gives a `Completion`, a list of prompts a list; with n > 1 each `Completion` becomes
        a list of n.

        Args:
            messages: a prompt, or a list of prompts that share the engine's batches
            thinking: budget, Waits, delimiters
            sampling: temperature, top-p, ...; the default is greedy
            n: completions of each prompt; they share its prefill
            seed: random seed for sampling

        Raises:
            UserError: a prompt cannot be rendered, or the only prompt cannot run. In a list, one
                that cannot run has finish_reason "error" and the reason in `error`.
        """
        thinking = thinking or ThinkingParams()
        prompts, single = _listed(messages, dict)
        ids = [self._render(prompt, thinking) for prompt in prompts]
        return self._complete(ids, single, thinking, sampling, n, seed)

    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompts: str | list[int], *, n: Literal[1] = 1, **settings: Unpack[_Settings]
    ) -> Completion: ...
    @overload
    def generate(
        self, prompts: str | list[int], *, n: int, **settings: Unpack[_Settings]
    ) -> list[Completion]: ...
    @overload
    def generate(  # type: ignore[overload-overlap]
        self,
        prompts: list[str] | list[list[int]],
        *,
        n: Literal[1] = 1,
        **settings: Unpack[_Settings],
    ) -> list[Completion]: ...
    @overload
    def generate(
        self, prompts: list[str] | list[list[int]], *, n: int, **settings: Unpack[_Settings]
    ) -> list[list[Completion]]: ...
    def generate(
        self,
        prompts: str | list[int] | list[str] | list[list[int]],
        *,
        thinking: ThinkingParams | None = None,
        sampling: SamplingParams | None = None,
        n: int = 1,
        seed: int = 0,
    ) -> Any:
        """Complete raw prompts, without a chat template: texts, or lists of token ids.

        Everything else is as in `chat`: `generate(prompts, n=8)` returns one list of 8 for each
        prompt.
        """
        listed, single = _listed(prompts, int)
        ids = [self._encode(prompt) for prompt in listed]
        return self._complete(ids, single, thinking or ThinkingParams(), sampling, n, seed)

    def stream(
        self,
        messages: str | Conversation,
        *,
        thinking: ThinkingParams | None = None,
        sampling: SamplingParams | None = None,
        seed: int = 0,
    ) -> Iterator[Piece]:
        """Answer one prompt, and yield its text while it is written.

        Special tokens at the end of the answer are left out. Several streams may be read in turn;
        they share the engine's batches.

        Args:
            messages: a text or a conversation, as in `chat`
            thinking, sampling, seed: as in `chat`

        Yields:
            Pieces of thinking and answer; the last one has the finished completion.

        Raises:
            UserError: the prompt cannot be rendered, or cannot run.
        """
        thinking = thinking or ThinkingParams()
        ids = self._render(messages, thinking)
        number = self._submit(Request(ids, thinking, sampling or SamplingParams(), seed=seed))
        pieces = Pieces(self.tokenizer)
        try:
            for output in self._read(number):
                yield from pieces.of_output(output)
                if output.completion is not None:
                    _raise_error(output.completion)
                    yield Piece("", "end", completion=output.completion)
                    return
        finally:
            self._drop(number)

    def score(self, prompt: str | list[int], following: str | list[int]) -> TokenScores:
        """Log-probabilities of the tokens of `following` behind a raw prompt.

        Args:
            prompt: text or token ids, at least one
            following: text or token ids; a text is encoded by itself

        Raises:
            UserError: the prompt is empty, or the two do not fit into the context.
        """
        ids = self._encode(prompt)
        number = self._submit(scoring_request(ids, self._encode(following)))
        try:
            outputs = self._read(number)
            done = next(o.completion for o in outputs if o.completion is not None)
        finally:
            self._drop(number)
        _raise_error(done)
        assert done.prompt_scores is not None
        return done.prompt_scores.since(len(ids) - 1)

    def _complete(
        self,
        prompts: list[list[int]],
        single: bool,
        thinking: ThinkingParams,
        sampling: SamplingParams | None,
        n: int,
        seed: int,
    ) -> Any:
        """Completions in the shape that `chat` describes."""
        requests = [
            Request(ids, thinking, sampling or SamplingParams(), n, seed) for ids in prompts
        ]
        longest = max(map(len, prompts), default=0)
        numbers = [self._submit(request, longest) for request in requests]
        done: dict[int, list[Completion]] = defaultdict(list)
        try:
            for number in numbers:
                while len(done[number]) < n:
                    output = next(self._read(number))
                    if output.completion is not None:
                        done[number].append(output.completion)
        finally:
            for number in numbers:
                self._drop(number)
        samples = [sorted(done[number], key=lambda c: c.index) for number in numbers]
        if single:
            _raise_error(samples[0][0])
        shaped = samples if n > 1 else [first for (first,) in samples]
        return shaped[0] if single else shaped

    def _submit(self, request: Request, longest: int | None = None) -> int:
        number = self.engine.submit(request, longest)
        self._outputs[number] = deque()
        return number

    def _read(self, number: int) -> Iterator[StreamOutput]:
        """Outputs of a request. The engine's step also writes for others: theirs are kept."""
        queue = self._outputs[number]
        while True:
            while not queue:
                for output in self.engine.step():
                    if output.request in self._outputs:
                        self._outputs[output.request].append(output)
            yield queue.popleft()

    def _drop(self, number: int) -> None:
        """Forget a request; one that is not finished (an abandoned stream) frees its memory."""
        self.engine.cancel(number)
        del self._outputs[number]

    def _render(self, prompt: Any, thinking: ThinkingParams) -> list[int]:
        """Token ids of a prompt in the chat template."""
        if isinstance(prompt, str):
            if not prompt.strip():
                return []  # the engine's error
            prompt = [{"role": "user", "content": prompt}]
        if not isinstance(prompt, list) or not all(
            isinstance(m, dict) and "role" in m and ("content" in m or "tool_calls" in m)
            for m in prompt
        ):
            raise UserError(
                f"messages={prompt!r:.60}: must be a text, a conversation "
                '[{"role": "user", "content": "..."}, ...], or a list of these'
            )
        return prompt_ids(prompt, thinking, self.tokenizer)

    def _encode(self, prompt: Any) -> list[int]:
        """Token ids of a raw prompt."""
        if isinstance(prompt, str):
            return encode(prompt, self.tokenizer)
        if not isinstance(prompt, Sequence) or not all(isinstance(i, int) for i in prompt):
            raise UserError(
                f"prompts={prompt!r:.60}: must be a text, token ids, or a list of these; "
                "conversations are for chat()"
            )
        return list(prompt)


def _listed(prompts: Any, part: type) -> tuple[Sequence[Any], bool]:
    """Prompts as a list, and whether they were a single one: a text, or a list of its parts."""
    if not isinstance(prompts, (list, tuple)) or (prompts and isinstance(prompts[0], part)):
        return [prompts], True
    return prompts, False


def _raise_error(completion: Completion) -> None:
    if completion.error is not None:
        raise UserError(completion.error)


def load_model(
    model: str | Path,
    *,
    dtype: Literal["bfloat16", "float32"] = "float32",
    mesh: MeshConfig | None = None,
) -> transformer.Transformer:
    """Load the network itself, a Flax module, for your own forward passes.

        network = load_model("Qwen/Qwen2.5-0.5B-Instruct")
        hidden_BTD = network(tokens_BT, positions_BT, segments_BT)
        logits_BTV = network.logits(hidden_BTD)

    Args:
        model: Hugging Face folder, hub id, converted checkpoint, training run, or a step of one
        dtype: dtype of the parameters and the computation
        mesh: layout over all devices; None uses the first device only

    Raises:
        UserError: the model does not exist or is damaged, or the mesh does not fit it.
    """
    weights = open_weights(model)
    devices = jax.devices() if mesh else jax.devices()[:1]
    rules = make_sharding_rules(mesh or MeshConfig(), devices)
    check_divisible(weights.architecture, rules)
    compute = ComputeConfig(dtype=dtype, param_dtype=dtype, remat="none", attention="xla")
    shapes = transformer.abstract(weights.architecture, compute, rules)
    return transformer.with_parameters(shapes, load_params(weights, shapes))
