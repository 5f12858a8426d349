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
from typing import Any, TextIO

from jaxs1.config import UserError, one_line, parse, run_command
from jaxs1.decoding import budget
from jaxs1.decoding.completer import Event
from jaxs1.decoding.completion import Completion, Request, Sampling
from jaxs1.decoding.opening import EngineConfig, open_engine
from jaxs1.decoding.presets import Thinking

DIM, FORCED, PLAIN = "\x1b[2m", "\x1b[33m", "\x1b[0m"
#: What a line of a prompts file may hold, beside columns of its own.
PROMPT_COLUMNS = ("prompt", "question", "problem")


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
    thinking: Thinking = field(default_factory=Thinking)
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1
    seed: int = 0
    output: str | None = None

    def __post_init__(self) -> None:
        """Refuse what asks for nothing, or would lose something."""
        if (self.prompt is None) == (self.prompts is None):
            raise UserError("prompt: give either --prompt TEXT or --prompts FILE.jsonl")
        if self.n < 1:
            raise UserError(f"n={self.n}: must be at least 1")
        if self.output and Path(self.output).exists():
            raise UserError(f"output={self.output}: exists; remove it or give another name")


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status: 1 where some prompt could not be completed."""
    config = parse(GenerateConfig, argv, command="python -m jaxs1.generate")
    lines = list(_read_prompts(config))
    opened = open_engine(config)
    _say(opened.description)
    engine = opened.engine
    requests = [_request(config, line, engine.tokenizer) for line in lines]
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
            write(event.request, lines[event.request], done)
            tokens += len(done.tokens)
            failed += done.error is not None
            if not streams and not config.output:
                printer.show_whole(event.request, done)
            for remark in filter(None, (done.note, done.error)):
                _say(f"prompt {event.request}: {remark}")
    seconds = time.monotonic() - start
    _say(f"{tokens:,} tokens in {seconds:.1f} s, compilation included")
    return 1 if failed else 0


def chat_ids(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """A conversation in the model's chat template, up to where the assistant begins."""
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def _read_prompts(config: GenerateConfig) -> Iterator[dict[str, Any]]:
    """One dictionary a prompt, with `messages`, or `prompt` for a text as it is."""
    if config.prompts is None:
        yield {"prompt": config.prompt}
        return
    try:
        lines = Path(config.prompts).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts={config.prompts}: cannot be read ({one_line(error)})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{config.prompts}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: is not valid JSON ({error})") from None
        if not isinstance(record, dict):
            raise UserError(f"{where}: must be a JSON object, is a {type(record).__name__}")
        if not isinstance(record.get("messages"), list):
            found = [c for c in PROMPT_COLUMNS if isinstance(record.get(c), str)]
            if not found:
                raise UserError(
                    f"{where}: has no prompt; give one of {', '.join(PROMPT_COLUMNS)} or messages"
                )
            record["prompt"] = record[found[0]]
        record["where"] = where
        yield record


def _request(config: GenerateConfig, line: dict[str, Any], tokenizer: Any) -> Request:
    """A line in token ids, with its own settings over those of the command."""
    where = line.pop("where", "prompt")
    asked = {}
    for name in ("thinking", "sampling"):
        own = line.get(name, {})
        group = getattr(config, name)
        known = [f.name for f in dataclasses.fields(group)]
        if not isinstance(own, dict) or (unknown := sorted(set(own) - set(known))):
            what = unknown[0] if isinstance(own, dict) else own
            raise UserError(f"{where}: {name}.{what}: no such field; there are {', '.join(known)}")
        try:
            asked[name] = dataclasses.replace(group, **own)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    messages = line.get("messages")
    if messages is None and config.chat:
        messages = [{"role": "user", "content": line["prompt"]}]
    if messages is None:
        ids = tokenizer(line["prompt"], add_special_tokens=False)["input_ids"]
    else:
        if config.system is not None:
            messages = [{"role": "system", "content": config.system}, *messages]
        ids = chat_ids(tokenizer, messages)
    n, seed = line.get("n", config.n), line.get("seed", config.seed)
    return Request(ids, asked["thinking"], asked["sampling"], n=n, seed=seed)


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

    def show(self, event: Event) -> None:
        """Print what an event adds."""
        new = event.written
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
        style = FORCED if forced else PLAIN if kind == budget.ANSWERING else DIM
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

    def _write(self, number: int, line: dict[str, Any], done: Completion) -> None:
        if self._file:
            record = {"request": number, **done.as_json()}
            own = {k: v for k, v in line.items() if k not in record and k != "prompt"}
            self._file.write(json.dumps({**record, **own}, ensure_ascii=False) + "\n")
            self._file.flush()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main)
