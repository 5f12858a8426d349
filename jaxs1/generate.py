"""Complete prompts: `python -m jaxs1.generate --model DIR --prompt "..." --thinking.max 2000`.

A single prompt is streamed to the terminal: thinking is dimmed, inserted tokens are highlighted.
With `--output`, every completion is written as one JSON object per line.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from jaxs1.config import UserError, override, parse, run_command
from jaxs1.data.messages import clean_messages, clean_tools
from jaxs1.data.records import QUESTION_COLUMNS
from jaxs1.data.text import check_text, encode
from jaxs1.decoding.budget import TokenKind
from jaxs1.decoding.detokenizer import Detokenizer
from jaxs1.decoding.loading import EngineConfig, load_engine
from jaxs1.decoding.outputs import Completion, StreamOutput
from jaxs1.decoding.params import Request, SamplingParams, ThinkingParams
from jaxs1.decoding.prompt import prompt_ids
from jaxs1.storage import JsonlWriter, Row, check_output, read_jsonl

DIM, FORCED, PLAIN = "\x1b[2m", "\x1b[33m", "\x1b[0m"
COMMAND = "python -m jaxs1.generate"
#: Columns of a prompts file that can hold the prompt.
PROMPT_COLUMNS = ("prompt", *QUESTION_COLUMNS)
#: Columns of a prompts file that override settings of the command.
SETTINGS = ("thinking", "sampling", "n", "seed")


@dataclass(frozen=True)
class GenerateConfig(EngineConfig):
    """Complete prompts with a model under a thinking budget.

    Args:
        prompt: one prompt; its completion is streamed to the terminal
        prompts: .jsonl file, one object per line with a prompt (prompt, question or problem) or
            messages, and tools; thinking, sampling, n and seed in a line override the command's. A
            line that is wrong is refused before the model is loaded
        chat: render prompts with the model's chat template; false: use them verbatim
        system: system message; null: the chat template's default
        thinking: thinking budget and budget forcing
        sampling: sampling of the next token
        n: number of completions per prompt; they share its prefill
        seed: random seed for sampling
        output: .jsonl file to write completions to; must not exist
    """

    prompt: str | None = None
    prompts: str | None = None
    chat: bool = True
    system: str | None = None
    thinking: ThinkingParams = field(default_factory=ThinkingParams)
    sampling: SamplingParams = field(default_factory=SamplingParams)
    n: int = 1
    seed: int = 0
    output: str | None = None

    def __post_init__(self) -> None:
        """Check that there is something to complete, and that no file would be overwritten."""
        if (self.prompt is None) == (self.prompts is None):
            raise UserError("prompt: give either --prompt TEXT or --prompts FILE.jsonl")
        if self.prompt is not None and not self.prompt.strip():
            raise UserError(f"prompt={self.prompt!r}: is empty; give a question")
        check_text({"prompt": self.prompt, "system": self.system})
        if self.n < 1:
            raise UserError(f"n={self.n}: must be at least 1")
        if self.output and Path(self.output).exists():
            raise UserError(f"output={self.output}: exists; remove it or give another name")


class Prompt(NamedTuple):
    """One prompt of the command.

    Args:
        where: file and line, for error messages
        content: a text or a conversation
        settings: the command's settings with those of the line
        columns: all columns of the line
    """

    where: str
    content: str | list[dict[str, Any]]
    settings: GenerateConfig
    columns: dict[str, Any]


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status: 1 if a prompt could not be completed."""
    config = parse(GenerateConfig, argv, command=COMMAND)
    prompts = list(_read_prompts(config))
    if config.output:
        check_output(config.output)
    loaded = load_engine(config)
    _log(loaded.description)
    tokenizer = loaded.engine.tokenizer
    requests = [_request(prompt, tokenizer) for prompt in prompts]
    printer = Printer(tokenizer, sys.stdout)
    streams = len(requests) == 1 and requests[0].n == 1
    start, failed, tokens = time.monotonic(), 0, 0
    with _open_output(config.output) as writer:
        for output in loaded.engine.stream(requests):
            if streams:
                printer.show(output)
            if (completion := output.completion) is None:
                continue
            if writer:
                writer.write(_record(output.request, prompts[output.request].columns, completion))
            if not streams and not config.output:
                printer.show_completion(output.request, completion)
            for remark in filter(None, (completion.note, completion.error)):
                _log(f"prompt {output.request}: {remark}")
            tokens += len(completion.tokens)
            failed += completion.error is not None
    seconds = time.monotonic() - start
    _log(f"{tokens:,} tokens in {seconds:.1f} s, compilation included")
    return 1 if failed else 0


def _read_prompts(config: GenerateConfig) -> Iterator[Prompt]:
    """The prompt of the command, or those of its file."""
    if config.prompts is None:
        yield Prompt("prompt", config.prompt or "", config, {})
        return
    path, empty = Path(config.prompts), True
    for where, columns in read_jsonl(path, setting="prompts"):
        empty = False
        try:
            yield _read_line(config, columns, where)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    if empty:
        raise UserError(f"prompts={path}: is empty; give one JSON object per line")


def _read_line(config: GenerateConfig, columns: Row, where: str) -> Prompt:
    """One line of a prompts file; raises `UserError`."""
    check_text(columns)
    texts = [columns[c] for c in PROMPT_COLUMNS if isinstance(columns.get(c), str)]
    content = columns.get("messages", texts[0] if texts else None)
    if content is None:
        raise UserError(f"has no prompt; give one of {', '.join(PROMPT_COLUMNS)}, or messages")
    if "messages" in columns and not _is_conversation(content):
        raise UserError('messages: must be [{"role": "user", "content": "..."}, ...]; change it')
    if "messages" in columns:
        clean_messages(content, prompt=True)
    clean_tools(columns.get("tools"))
    changes = {name: columns[name] for name in SETTINGS if name in columns}
    settings = override(config, changes, command=COMMAND) if changes else config
    return Prompt(where, content, settings, columns)


def _is_conversation(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(
            isinstance(m, dict)
            and isinstance(m.get("role"), str)
            and ("content" in m or "tool_calls" in m)
            for m in messages
        )
    )


def _request(prompt: Prompt, tokenizer: Any) -> Request:
    """A prompt in token ids; an empty one has none, which the engine refuses."""
    settings, content = prompt.settings, prompt.content
    if isinstance(content, str) and not content.strip():
        ids = []
    elif isinstance(content, str) and not settings.chat:
        ids = encode(content, tokenizer)
    else:
        system = [] if settings.system is None else [{"role": "system", "content": settings.system}]
        messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
        try:
            tools = prompt.columns.get("tools")
            ids = prompt_ids([*system, *messages], settings.thinking, tokenizer, tools)
        except UserError as error:
            raise UserError(f"{prompt.where}: {error}") from None
    return Request(ids, settings.thinking, settings.sampling, n=settings.n, seed=settings.seed)


class Printer:
    """Prints completions; with colours if the output is a terminal.

    Args:
        tokenizer: tokenizer of the model
        out: output stream
    """

    def __init__(self, tokenizer: Any, out: TextIO):
        self._tokenizer, self._out = tokenizer, out
        self._colours = out.isatty()
        self._style = PLAIN
        self._detokenizer = Detokenizer(tokenizer)

    def show(self, output: StreamOutput) -> None:
        """Print the new tokens of one sequence."""
        new = output.new_tokens
        styles = map(_style, new.forced, new.kinds)
        for style, pairs in itertools.groupby(zip(styles, new.tokens, strict=True), lambda p: p[0]):
            if style != self._style:
                self._print(self._detokenizer.flush())
                self._switch(style)
            self._print(self._detokenizer.add([token for _, token in pairs]))
        if output.completion is not None:
            self._print(self._detokenizer.flush())
            self._detokenizer = Detokenizer(self._tokenizer)
            self._switch(PLAIN)
            self._print("\n")

    def show_completion(self, number: int, completion: Completion) -> None:
        """Print a finished completion under a heading."""
        self._print(
            f"--- prompt {number}, completion {completion.index}: {completion.finish_reason}\n"
        )
        if completion.error is None:
            self._switch(DIM)
            self._print(f"{completion.thinking}\n")
            self._switch(PLAIN)
            self._print(f"{completion.answer}\n")

    def _switch(self, style: str) -> None:
        if self._colours and style != self._style:
            self._print(PLAIN + style)
        self._style = style

    def _print(self, text: str) -> None:
        print(text, end="", file=self._out, flush=True)


def _style(forced: bool, kind: int) -> str:
    if forced:
        return FORCED
    return PLAIN if kind == TokenKind.ANSWER else DIM


def _open_output(path: str | None) -> AbstractContextManager[JsonlWriter | None]:
    return JsonlWriter(Path(path), new=True) if path else nullcontext()


def _record(number: int, columns: dict[str, Any], completion: Completion) -> dict[str, Any]:
    """A completion of prompt `number`, with those columns of its line that it lacks."""
    record = {"request": number, **completion.as_json()}
    return record | {k: v for k, v in columns.items() if k not in record}


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main)
