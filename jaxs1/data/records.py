"""Training records from the rows of a file or hub dataset.

A record is either a chat (`messages`) or plain text (`text`). `FORMATS` lists the columns of each
format and the function that turns them into a record; a new format is one function and one entry.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

from jaxs1.config import UserError
from jaxs1.data.chat import Record, announced, reasoning
from jaxs1.data.config import DataConfig
from jaxs1.data.messages import clean_messages, clean_tools
from jaxs1.data.sources import Row, Source

#: Columns that may contain a question, the most likely first.
QUESTION_COLUMNS = ("question", "problem")
#: Columns next to `messages` that would change what the template writes.
_UNSUPPORTED = ("chat_template_kwargs", "documents", "functions", "system")


def question_key(question: str) -> str:
    """The first 16 hexadecimal digits of a question's SHA-256, as in s1."""
    return hashlib.sha256(question.encode(errors="surrogatepass")).hexdigest()[:16]


def _reasoned(question: str, thinking: str, attempt: str) -> dict[str, Any]:
    """A question, and an answer that was thought about."""
    return {
        "messages": (
            {"role": "user", "content": question},
            {"role": "assistant", "content": reasoning(thinking, attempt)},
        ),
        "trace": (thinking, announced(attempt)),
    }


def _s1k(row: Row, prefix: str = "") -> dict[str, Any]:
    if prefix:
        thinking = row[f"{prefix}thinking_trajectory"]
    else:
        thinking = row["thinking_trajectories"]
        if isinstance(thinking, list):
            if not thinking:
                raise UserError("thinking_trajectories=[]: must hold at least one trace")
            thinking = thinking[0]
    attempt = _string(row[f"{prefix}attempt"], f"{prefix}attempt")
    thinking = _string(thinking, f"{prefix}thinking_trajectories")
    return _reasoned(_string(row["question"], "question"), thinking, attempt)


def _gsm8k(row: Row) -> dict[str, Any]:
    """The worked solution becomes the thinking, without the calculator annotations <<...>>."""
    solution, separator, answer = _string(row["answer"], "answer").rpartition("####")
    if not separator:
        raise UserError("answer: must end in '#### NUMBER', as GSM8K's answers do")
    solution = re.sub(r"<<.*?>>", "", solution)
    return _reasoned(_string(row["question"], "question"), solution, answer)


def _messages(row: Row) -> dict[str, Any]:
    messages = clean_messages(row["messages"])
    if messages[-1]["role"] != "assistant":
        raise UserError(f"messages[-1].role={messages[-1]['role']!r:.60}: must be assistant")
    for column in _UNSUPPORTED:
        if row.get(column):
            raise UserError(f"{column}: cannot be given to the chat template; remove the column")
    return {"messages": messages, "tools": clean_tools(row.get("tools"))}


def _text(row: Row) -> dict[str, Any]:
    return {"text": _string(row["text"], "text")}


#: Format -> its columns and the function that makes a record; `auto` tries them in this order.
FORMATS: dict[str, tuple[tuple[str, ...], Callable[[Row], dict[str, Any]]]] = {
    "s1k-1.1": (
        ("question", "deepseek_thinking_trajectory", "deepseek_attempt"),
        lambda row: _s1k(row, "deepseek_"),
    ),
    "s1k": (("question", "thinking_trajectories", "attempt"), _s1k),
    "messages": (("messages",), _messages),
    "gsm8k": (("question", "answer"), _gsm8k),
    "text": (("text",), _text),
}


def load_records(config: DataConfig) -> tuple[str, list[Record]]:
    """The name of a dataset's format, and all its records.

    Raises:
        UserError: a missing file, a malformed line (the message names file, line and field),
            columns that match no format, or no records at all.
    """
    name: str = config.format
    records = []
    for where, row in Source(config.path, config.split, setting="data.path").rows():
        row = row | {field: row[name] for field, name in config.fields.items() if name in row}
        if name == "auto":
            name = _detect(row, where)
        columns, make = FORMATS[name]
        missing = [c for c in columns if row.get(c) is None]
        if missing:
            raise UserError(
                f"{where}: field {missing[0]!r} is missing, which format {name} requires; "
                f"""name the column with --data.fields '{{"{missing[0]}": "COLUMN"}}'"""
            )
        try:
            records.append(Record(where, **make(row)))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if config.limit is not None and len(records) == config.limit:
            break
    if not records:
        raise UserError(
            f"data.path={config.path}: contains no records; give a file with at least one"
        )
    return name, records


def _detect(row: Row, where: str) -> str:
    for name, (columns, _) in FORMATS.items():
        if all(c in row for c in columns):
            return name
    known = "; ".join(f"{name}: {', '.join(columns)}" for name, (columns, _) in FORMATS.items())
    raise UserError(
        f"{where}: columns {', '.join(row)} match no known format ({known}); "
        "map them with --data.fields"
    )


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{name}: must be a string, is a {type(value).__name__}")
    return value
