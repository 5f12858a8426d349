"""Formats, field mappings, and the line that a malformed record gets."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxs1.config import UserError
from jaxs1.data.config import DataConfig
from jaxs1.data.records import load_records

S1K = {"question": "q", "thinking_trajectories": ["t", "other"], "attempt": "a"}
S1K_11 = {"question": "q", "deepseek_thinking_trajectory": "t", "deepseek_attempt": "a"}
CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
GSM8K = {"question": "q", "answer": "1+1=<<1+1=2>>2\n#### 2"}
REASONED = "<|im_start|>think\nt\n<|im_start|>answer\nAnswer: a"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("row", "name", "reply"),
    [
        (S1K, "s1k", REASONED),
        (S1K | S1K_11, "s1k-1.1", REASONED),
        (CHAT, "messages", "a"),
        (GSM8K, "gsm8k", "<|im_start|>think\n1+1=2\n<|im_start|>answer\nAnswer: 2"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_formats(row, name, reply, kind, tmp_path):
    path = tmp_path / f"data.{kind}"
    if kind == "jsonl":
        write(path, [row, row])
    else:
        pq.write_table(pa.Table.from_pylist([row, row]), path)
    found, records = load_records(DataConfig(path=str(path)))
    assert (found, len(records)) == (name, 2)
    assert records[1].where == f"{path}:2"
    assert [m["content"] for m in records[0].messages] == ["q", reply]


def test_text_and_limit(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": str(i)} for i in range(9)])
    name, records = load_records(DataConfig(path=path, limit=3))
    assert name == "text"
    assert [r.text for r in records] == ["0", "1", "2"]


def test_field_mapping(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": "q", "cot": "t", "reply": "a"}])
    fields = {"question": "prompt", "thinking_trajectories": "cot", "attempt": "reply"}
    name, records = load_records(DataConfig(path=path, fields=fields))
    assert name == "s1k"
    assert records[0].messages[1]["content"] == REASONED


@pytest.mark.parametrize(
    ("lines", "options", "words"),
    [
        ([json.dumps(S1K), '{"question": "q"'], {}, ["a.jsonl:2", "not valid JSON"]),
        ([json.dumps(S1K), "[1]"], {}, ["a.jsonl:2", "JSON object", "list"]),
        ([json.dumps(S1K), '{"question": "q", "attempt": "a"}'], {}, [":2", "thinking_traj"]),
        ([json.dumps(S1K | {"attempt": 3})], {}, [":1", "attempt", "string", "int"]),
        ([json.dumps(S1K | {"thinking_trajectories": []})], {}, [":1", "thinking_traj", "one"]),
        ([json.dumps(GSM8K | {"answer": "4"})], {}, [":1", "answer", "####"]),
        (['{"a": 1, "b": 2}'], {}, [":1", "columns a, b", "--data.fields"]),
        (['{"messages": []}'], {}, [":1", "messages"]),
        (['{"messages": [{"role": "user"}]}'], {}, [":1", "messages[0]", "content"]),
        (['{"messages": [{"role": "user", "content": "q"}]}'], {}, ["[-1].role='user'"]),
        (['{"text": "t"}'], {"format": "s1k"}, [":1", "question", "format s1k"]),
        ([], {}, ["no records"]),
        (["\xff"], {}, ["a.jsonl:1", "UTF-8"]),
    ],
)
def test_malformed_line_is_named(lines, options, words, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes("\n".join(lines).encode("latin-1"))
    with pytest.raises(UserError) as error:
        load_records(DataConfig(path=str(path), **options))
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_missing_file_folder_and_broken_parquet(tmp_path):
    for path, words in [
        (tmp_path / "none.jsonl", "no such file"),
        (tmp_path, "is a folder"),
    ]:
        with pytest.raises(UserError, match=words):
            load_records(DataConfig(path=str(path)))
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(UserError, match="not a readable Parquet file") as error:
        load_records(DataConfig(path=str(broken)))
    assert "\n" not in str(error.value)


def test_hub_dataset_without_network_or_package_is_one_line():
    with pytest.raises(UserError, match="simplescaling/s1K") as error:
        load_records(DataConfig(path="simplescaling/s1K"))
    assert "\n" not in str(error.value)
