"""The folder of an evaluation: what is written is read back, torn requests are dropped."""

import json
import shutil

import pytest

from jaxs1.config import UserError
from jaxs1.evaluation.samples import BULKY, Key, Samples, current_sample, current_settings
from jaxs1.tasks import graders
from tests.conftest import ROOT
from tests.evaluation.fake import Engine, config, evaluate

#: The folder of an evaluation that version 0.1 wrote, with its task.
V0_1 = ROOT / "tests" / "evaluation" / "data" / "v0_1"
OLD_NAMES = {"try", "given", "gold", "asked"}
SETTINGS = {"model": "m", "thinking": {"max": -1, "delimiters": {"ends": ["a"]}}}
KEYS = [Key("max=1 num_waits=0", i, attempt) for i in range(3) for attempt in range(2)]


def sample(i):
    return {"correct": i % 2 == 0, "question": f"q{i}", "thinking": "long", "prediction": "\ud83d"}


def fill(folder):
    samples = Samples(folder, SETTINGS)
    for i, key in enumerate(KEYS):
        samples.add(key, [sample(i), sample(i + 1)])
    samples.close()
    return samples.done


def reopen(folder, settings=SETTINGS):
    samples = Samples(folder, settings)
    samples.close()
    return samples.done


def test_what_was_added_is_read_back_without_bulky_fields(tmp_path):
    done = fill(tmp_path / "new" / "folder")
    assert reopen(tmp_path / "new" / "folder") == done and list(done) == KEYS
    first, second = done[KEYS[0]]
    assert first["correct"] and not second["correct"] and second["sample"] == 1
    assert not set(BULKY) & first.keys()
    lines = (tmp_path / "new" / "folder" / "samples.jsonl").read_text().splitlines()
    assert json.loads(lines[0]).items() >= (sample(0) | KEYS[0]._asdict()).items()


def test_cut_at_every_byte_only_complete_requests_stay(tmp_path):
    done = fill(tmp_path)
    file = tmp_path / "samples.jsonl"
    content = file.read_bytes()
    ends = [0, *(i + 1 for i, byte in enumerate(content) if byte == ord("\n"))][::2]
    for cut in range(0, len(content) + 1, 7):
        file.write_bytes(content[:cut])
        complete = sum(end <= cut for end in ends) - 1
        assert reopen(tmp_path) == dict(list(done.items())[:complete])
        assert file.read_bytes() == content[: ends[complete]]


def test_a_second_writer_is_refused(tmp_path):
    samples = Samples(tmp_path, SETTINGS)
    with pytest.raises(UserError, match="another process is writing it"):
        Samples(tmp_path, SETTINGS)
    samples.close()
    reopen(tmp_path)


def test_other_settings_are_refused_by_their_dotted_name(tmp_path):
    fill(tmp_path)
    other = {"model": "m", "thinking": {"max": -1, "delimiters": {"ends": ["b"]}}}
    with pytest.raises(UserError, match=r'have thinking\.delimiters\.ends=\["a"\], now it is \['):
        reopen(tmp_path, other)


def test_a_folder_of_version_0_1_is_resumed(tmp_path):
    """Two thirds of its samples are removed: the same ones are drawn again, the rest is kept."""
    folder = tmp_path / "out"
    shutil.copytree(V0_1, folder, ignore=shutil.ignore_patterns("sums.jsonl", "results.json"))
    settings = json.loads((folder / "settings.json").read_text())
    settings["grader"] = graders.VERSION
    (folder / "settings.json").write_text(json.dumps(settings))
    whole = (folder / "samples.jsonl").read_text().splitlines(keepends=True)
    (folder / "samples.jsonl").write_text("".join(whole[:10]))
    engine = Engine()
    sweep = ("--sweep.budget", "[30]", "--sweep.num_waits", "[0,1]")
    more = ("--sweep.rejection", "[45]", "--sweep.tries", 2, "--thinking.max_answer_tokens", 40)
    arguments = ("--task", V0_1 / "sums.jsonl", "--n", 2, "--sampling.temperature", 1)
    results = evaluate(config(*arguments, "--output", folder, *sweep, *more), engine)
    assert len(engine.requests) == (len(whole) - 10) // 2
    before = json.loads((V0_1 / "results.json").read_text())
    figures = ("accuracy", "right", "thinking_tokens", "draws", "majority")
    for point, old in zip(results.as_json()["points"], before["points"], strict=True):
        assert {name: point[name] for name in figures} == {name: old[name] for name in figures}
    lines = [json.loads(x) for x in (folder / "samples.jsonl").read_text().splitlines()]
    by_request = {(x["point"], x["question_id"], x["attempt"], x["sample"]): x for x in lines[10:]}
    for line in map(json.loads, whole[10:]):
        new = by_request.pop((line["point"], line["question"], line["try"], line["sample"]))
        assert new == current_sample(line) and not OLD_NAMES & new.keys()
    assert not by_request


def test_settings_of_version_0_1_under_their_current_names():
    old = {"limits.context": 9, "n": 2, "thinking": {"cue": None, "max": 1, "max_answer": 4}}
    assert current_settings(old) == {
        "limits.max_seq_len": 9,
        "n": 2,
        "thinking": {"answer_prefix": None, "max": 1, "max_answer_tokens": 4},
    }
    assert current_settings(current_settings(old)) == current_settings(old)
