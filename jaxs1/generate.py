"""Complete prompts: `python -m jaxs1.generate --model DIR --prompt "..." --thinking.max 2000`.

A single prompt streams to the terminal, thinking dimmed, what the controller wrote highlighted.
With `--output` every completion becomes one JSON object a line.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from jaxs1.config import UserError, one_line, parse, run_command
from jaxs1.data.records import QUESTION_COLUMNS
from jaxs1.decoding import budget
from jaxs1.decoding.loading import EngineConfig, load_engine
from jaxs1.decoding.outputs import Completion, StreamOutput
from jaxs1.decoding.params import Request, SamplingParams, ThinkingParams
from jaxs1.decoding.prompt import prompt_ids

DIM, FORCED, PLAIN = "\x1b[2m", "\x1b[33m", "\x1b[0m"
COMMAND = "python -m jaxs1.generate"
#: What a line of a prompts file may hold, beside columns of its own.
PROMPT_COLUMNS = ("prompt", *QUESTION_COLUMNS)


@dataclass(frozen=True)
class Asked:
    """What a line of a prompts file may ask for itself.

    Args:
        thinking: how long it thinks
        sampling: how tokens are drawn
        n: completions of each prompt, which share its prefill
        seed: of the draws
    """

    thinking: ThinkingParams = field(default_factory=ThinkingParams)
    sampling: SamplingParams = field(default_factory=SamplingParams)
    n: int = 1
    seed: int = 0


@dataclass(frozen=True)
class GenerateConfig(EngineConfig):
    """Complete prompts with a model that thinks for as long as you allow.

    Args:
        prompt: one prompt; streams to the terminal
        prompts: .jsonl file, one object a line with a prompt (prompt, question or problem) or
            messages; thinking, sampling, n and seed there override those given here
        chat: render prompts with the model's chat template; false takes them as they are
        system: system message; null: the chat template's own
        thinking: how long it thinks
        sampling: how tokens are drawn
        n: completions of each prompt, which share its prefill
        seed: of the draws
        output: .jsonl file for the completions; must not exist
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
        """Refuse what asks for nothing, or would lose something."""
        if (self.prompt is None) == (self.prompts is None):
            raise UserError("prompt: give either --prompt TEXT or --prompts FILE.jsonl")
        if self.prompt is not None and not self.prompt.strip():
            raise UserError(f"prompt={self.prompt!r}: is empty; give a question")
        if self.n < 1:
            raise UserError(f"n={self.n}: must be at least 1")
        if self.output and Path(self.output).exists():
            raise UserError(f"output={self.output}: exists; remove it or give another name")


class Prompt(NamedTuple):
    """One prompt of the command.

    where: it stands, for messages; content: a text, or a conversation; asked: its settings;
    columns: all of its line
    """

    where: str
    content: str | list[dict[str, str]]
    asked: Asked
    columns: dict[str, Any]


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status: 1 where some prompt could not be completed."""
    config = parse(GenerateConfig, argv, command=COMMAND)
    prompts = list(_read_prompts(config))
    opened = load_engine(config)
    _say(opened.description)
    engine = opened.engine
    requests = [_request(config, prompt, engine.tokenizer) for prompt in prompts]
    streams = len(requests) == 1 and requests[0].n == 1
    start, failed, tokens = time.monotonic(), 0, 0
    with _writer(config.output) as write:
        printer = Printer(engine.tokenizer, sys.stdout)
        for event in engine.stream(requests):
            if streams:
                printer.show(event)
            done = event.completion
            if done is None:
                continue
            write(event.request, prompts[event.request].columns, done)
            tokens += len(done.tokens)
            failed += done.error is not None
            if not streams and not config.output:
                printer.show_whole(event.request, done)
            for remark in filter(None, (done.note, done.error)):
                _say(f"prompt {event.request}: {remark}")
    seconds = time.monotonic() - start
    _say(f"{tokens:,} tokens in {seconds:.1f} s, compilation included")
    return 1 if failed else 0


def _read_prompts(config: GenerateConfig) -> Iterator[Prompt]:
    """The prompt of the command, or those of its file."""
    if config.prompts is None:
        yield Prompt("prompt", config.prompt or "", _own_settings(config, {}), {})
        return
    try:
        lines = Path(config.prompts).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts={config.prompts}: cannot be read ({one_line(error)})") from None
    if not any(line.strip() for line in lines):
        raise UserError(f"prompts={config.prompts}: is empty; give one JSON object a line")
    for number, line in enumerate(lines, 1):
        where = f"{config.prompts}, line {number}"
        if line.strip():
            try:
                yield _read_line(config, line, where)
            except UserError as error:
                raise UserError(f"{where}: {error}") from None


def _read_line(config: GenerateConfig, line: str, where: str) -> Prompt:
    """One line of a prompts file; raises `UserError`."""
    try:
        columns = json.loads(line)
    except ValueError as error:
        raise UserError(f"is not valid JSON ({error}); give one object a line") from None
    if not isinstance(columns, dict):
        raise UserError(f"is a {type(columns).__name__}; give a JSON object")
    texts = [columns[c] for c in PROMPT_COLUMNS if isinstance(columns.get(c), str)]
    content = columns.get("messages", texts[0] if texts else None)
    if content is None:
        raise UserError(f"has no prompt; give one of {', '.join(PROMPT_COLUMNS)}, or messages")
    if "messages" in columns and not _is_conversation(content):
        raise UserError('messages: must be [{"role": "user", "content": "..."}, ...]; change it')
    return Prompt(where, content, _own_settings(config, columns), columns)


def _is_conversation(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and "content" in m
            for m in messages
        )
    )


def _own_settings(config: GenerateConfig, columns: dict[str, Any]) -> Asked:
    """The settings of a line over those of the command."""
    names = [f.name for f in dataclasses.fields(Asked)]
    own = {name: columns[name] for name in names if name in columns}
    if not own:
        return Asked(config.thinking, config.sampling, config.n, config.seed)
    argv = []
    for name in names:
        given = getattr(config, name)
        if isinstance(given, int):
            argv += _arguments({name: own.get(name, given)})
            continue
        argv += _arguments({name: dataclasses.asdict(given)})
        fields = own.get(name, {})
        if not isinstance(fields, dict):
            raise UserError(
                f"{name}: must be an object, of fields as {COMMAND} --help lists them; "
                "a column of your own needs another name"
            )
        argv += _arguments({f"{name}.{key}": value for key, value in fields.items()})
    asked = parse(Asked, argv, command=COMMAND)
    if asked.n < 1:
        raise UserError(f"n={asked.n}: must be at least 1")
    return asked


def _arguments(values: dict[str, Any]) -> list[str]:
    """Values as a command line gives them."""
    return [f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in values.items()]


def _request(config: GenerateConfig, prompt: Prompt, tokenizer: Any) -> Request:
    """A prompt in token ids; an empty one has none, which the engine refuses."""
    asked, content = prompt.asked, prompt.content
    if isinstance(content, str) and not content.strip():
        ids = []
    elif isinstance(content, str) and not config.chat:
        ids = tokenizer(content, add_special_tokens=False)["input_ids"]
    else:
        system = [] if config.system is None else [{"role": "system", "content": config.system}]
        messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
        try:
            ids = prompt_ids([*system, *messages], asked.thinking, tokenizer)
        except UserError as error:
            raise UserError(f"{prompt.where}: {error}") from None
    return Request(ids, asked.thinking, asked.sampling, n=asked.n, seed=asked.seed)


class Printer:
    """Shows completions in a terminal; colours only where it is one.

    Args:
        tokenizer: of the model
        out: where to
    """

    def __init__(self, tokenizer: Any, out: TextIO):
        self.tokenizer, self.out = tokenizer, out
        self._colours = out.isatty()
        self._style, self._shown = PLAIN, 0
        self._ids: list[int] = []

    def show(self, event: StreamOutput) -> None:
        """Print what an event adds."""
        new = event.new_tokens
        for token, forced, kind in zip(new.tokens, new.forced, new.kinds, strict=True):
            self._add(token, forced, kind)
        self._flush(whole=False)
        if event.completion is not None:
            self._flush(whole=True)
            self._switch(PLAIN)
            print(file=self.out, flush=True)

    def show_whole(self, number: int, done: Completion) -> None:
        """Print a finished completion under a heading."""
        print(f"--- prompt {number}, completion {done.index}: {done.finish_reason}", file=self.out)
        if done.error is None:
            self._switch(DIM)
            print(done.thinking, file=self.out)
            self._switch(PLAIN)
            print(done.answer, file=self.out, flush=True)

    def _add(self, token: int, forced: bool, kind: int) -> None:
        style = FORCED if forced else PLAIN if kind == budget.TokenKind.ANSWER else DIM
        if style != self._style:
            self._flush(whole=True)
            self._switch(style)
        self._ids.append(token)

    def _flush(self, *, whole: bool) -> None:
        """Print the text of what was added; half a character waits for its rest."""
        text = self.tokenizer.decode(self._ids)
        if whole or not text.endswith("\ufffd"):
            print(text[self._shown :], end="", file=self.out, flush=True)
            self._shown = len(text)
        if whole:
            self._ids, self._shown = [], 0

    def _switch(self, style: str) -> None:
        if self._colours and style != self._style:
            print(PLAIN + style, end="", file=self.out)
        self._style = style


class _writer:
    """Appends completions to a file as JSON lines; to nothing where there is no file."""

    def __init__(self, path: str | None):
        self._file = open(path, "x") if path else None  # noqa: SIM115

    def __enter__(self) -> Any:
        return self._write

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()

    def _write(self, number: int, columns: dict[str, Any], done: Completion) -> None:
        if self._file:
            record = {"request": number, **done.as_json()}
            own = {k: v for k, v in columns.items() if k not in record}
            self._file.write(json.dumps({**record, **own}, ensure_ascii=False) + "\n")
            self._file.flush()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main)
