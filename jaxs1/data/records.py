"""Training records as they lie on disk or on the hub: JSONL, Parquet, hub datasets.

A record is either a chat (`messages`) or plain text (`text`). `FORMATS` says which columns a format
needs and how they become a record; a new format is one function and one row there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxs1.config import DataConfig, UserError
from jaxs1.data.chat import Record, reasoning

Row = dict[str, Any]


def _question_answer(question: str, answer: str) -> dict[str, Any]:
    return {
        "messages": (
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        )
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
    return _question_answer(_string(row["question"], "question"), reasoning(thinking, attempt))


def _gsm8k(row: Row) -> dict[str, Any]:
    """The worked solution is the thinking; the calculator's <<...>> annotations are left out."""
    solution, separator, answer = _string(row["answer"], "answer").rpartition("####")
    if not separator:
        raise UserError("answer: must end in '#### NUMBER', as GSM8K's answers do")
    solution = re.sub(r"<<.*?>>", "", solution)
    return _question_answer(_string(row["question"], "question"), reasoning(solution, answer))


def _messages(row: Row) -> dict[str, Any]:
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise UserError("messages: must be a list of {role, content}, with at least one")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise UserError(f"messages[{i}]: must have role and content")
        _string(message["content"], f"messages[{i}].content")
    if messages[-1]["role"] != "assistant":
        raise UserError(f"messages[-1].role={messages[-1]['role']!r}: must be assistant")
    return {"messages": tuple({"role": m["role"], "content": m["content"]} for m in messages)}


def _text(row: Row) -> dict[str, Any]:
    return {"text": _string(row["text"], "text")}


#: Format -> the columns it needs, and how they become a record. Order is that of `auto`.
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
    """All records of a dataset, and the name of their format.

    Raises:
        UserError: a missing file, a malformed line (file, line and field are named), columns that
            fit no format, or no records at all.
    """
    name: str = config.format
    records = []
    for where, row in _rows(config):
        row = {
            **row,
            **{ours: row[theirs] for ours, theirs in config.fields.items() if theirs in row},
        }
        if name == "auto":
            name = _detect(row, where)
        columns, make = FORMATS[name]
        missing = [c for c in columns if row.get(c) is None]
        if missing:
            raise UserError(
                f"{where}: field {missing[0]!r} is missing, which format {name} needs; "
                f"""name the column with --data.fields '{{"{missing[0]}": "COLUMN"}}'"""
            )
        try:
            records.append(Record(where, **make(row)))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if config.limit is not None and len(records) == config.limit:
            break
    if not records:
        raise UserError(f"data.path={config.path}: holds no records; give a file with at least one")
    return name, records


def _detect(row: Row, where: str) -> str:
    for name, (columns, _) in FORMATS.items():
        if all(c in row for c in columns):
            return name
    known = "; ".join(f"{name}: {', '.join(columns)}" for name, (columns, _) in FORMATS.items())
    raise UserError(
        f"{where}: columns {', '.join(row)} fit no known format ({known}); "
        "map them with --data.fields"
    )


def _rows(config: DataConfig) -> Iterator[tuple[str, Row]]:
    path = Path(config.path)
    if path.is_file():
        with path.open("rb") as file:
            is_parquet = file.read(4) == b"PAR1"
        yield from _parquet(path) if is_parquet else read_jsonl(path)
    elif path.exists():
        raise UserError(f"data.path={path}: is a folder; give a .jsonl or .parquet file")
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", config.path) and not path.parent.exists():
        yield from _hub(config)
    else:
        raise UserError(
            f"data.path={path}: no such file; give a .jsonl or .parquet file or a hub id"
        )


def read_jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    """Rows of a JSONL file with where each lies; raises `UserError` at a malformed line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{where}: is not UTF-8 (byte {error.start}); re-encode the file"
                ) from None
            except ValueError as error:
                raise UserError(
                    f"{where}: is not valid JSON ({error}); mend or remove the line"
                ) from None
            if not isinstance(row, dict):
                raise UserError(f"{where}: must be a JSON object, is a {type(row).__name__}")
            yield where, row


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    from pyarrow import ArrowInvalid, parquet

    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:{number}", row
    except (ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"data.path={path}: is not a readable Parquet file ({reason})") from None


def _hub(config: DataConfig) -> Iterator[tuple[str, Row]]:
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"data.path={config.path}: no such file; as a hub dataset it needs the package "
            "datasets; pip install 'jaxs1[hub]'"
        ) from None
    try:
        rows = datasets.load_dataset(config.path, split=config.split)
    except Exception as error:  # whatever the hub, the network or the loader say
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"data.path={config.path}: neither a local file nor loadable from the hub ({reason})"
        ) from None
    for number, row in enumerate(rows, start=1):
        yield f"{config.path}[{config.split}]:{number}", row


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{name}: must be a string, is a {type(value).__name__}")
    return value
