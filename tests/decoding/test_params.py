"""Thinking parameters: what is wrong in itself, on the command line, in YAML and in the help."""

import dataclasses

import pytest

from jaxs1.config import UserError, parse, to_yaml
from jaxs1.decoding.params import PRESETS, Delimiters, SamplingParams, ThinkingParams


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preset": "s2"}, r"thinking.preset='s2': unknown preset; choose one of s1, think_tags"),
        ({"mode": "lax"}, r"thinking.mode='lax': unknown mode; choose one of strict, s1_readme"),
        ({"max": -2}, r"thinking.max=-2: must be -1 or more \(-1: no limit\)"),
        ({"min": -1}, r"thinking.min=-1: must be 0 or more"),
        ({"num_waits": -1}, r"thinking.num_waits=-1: must be 0 or more"),
        ({"max_answer_tokens": 0}, r"thinking.max_answer_tokens=0: leaves no answer"),
        ({"min_answer_tokens": 0}, r"thinking.min_answer_tokens=0: must be 1 or more"),
        ({"min": 9, "max": 8}, r"thinking.min=9: must not exceed thinking.max=8"),
        (
            {"num_waits": 1, "wait_strings": ()},
            r"thinking.num_waits=1: needs at least one string to insert",
        ),
        ({"max": "auto"}, r"thinking.max=auto: requires thinking.mode=s1_harness"),
    ],
)
def test_what_is_wrong_in_itself(fields, message):
    with pytest.raises(UserError, match=message) as caught:
        ThinkingParams(**fields)
    assert "\n" not in str(caught.value)


@dataclasses.dataclass(frozen=True)
class Command:
    """A command that thinks.

    Args:
        thinking: how long
    """

    thinking: ThinkingParams = dataclasses.field(default_factory=ThinkingParams)


def test_fields_on_the_command_line_and_in_yaml(tmp_path):
    argv = ["--thinking.max", "512", "--thinking.num_waits", "2", "--thinking.preset", "think_tags"]
    argv += ["--thinking.wait_strings", '["Wait","Hmm"]', "--thinking.delimiters.close", "</t>"]
    command = parse(Command, argv, command="x")
    assert command.thinking.max == 512
    assert tuple(command.thinking.wait_strings) == ("Wait", "Hmm")
    assert command.thinking.delimiters == Delimiters(close="</t>")
    recipe = tmp_path / "x.yaml"
    recipe.write_text(to_yaml(command))
    assert parse(Command, ["--config", str(recipe)], command="x") == command
    assert parse(Command, [], command="x") == Command()
    auto = [
        "--thinking.max",
        "auto",
        "--thinking.mode",
        "s1_harness",
        "--thinking.max_answer_tokens",
        "9",
    ]
    assert parse(Command, auto, command="x").thinking.max == "auto"
    for wrong, message in {
        ("--thinking.max", "many"): r"thinking.max",
        ("--thinking.waits", "2"): r"thinking.waits: no such field; did you mean thinking.\w+",
        ("--thinking.preset", "s2"): r"thinking.preset='s2': unknown preset",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            parse(Command, list(wrong), command="x")
        assert "\n" not in str(caught.value)


def test_help_explains_every_field(capsys):
    with pytest.raises(SystemExit):
        parse(Command, ["--help"], command="x")
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(ThinkingParams):
        assert f"--thinking.{field.name}" in text
    assert "number of times to suppress the end of thinking" in text
    assert "text that begins thinking; appended to the prompt" in text


def test_every_preset_is_complete():
    for preset in PRESETS.values():
        assert all(value is not None for value in vars(preset).values())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.5}, r"sampling.temperature=-0.5: must be 0 or more"),
        ({"answer_temperature": -1.0}, r"sampling.answer_temperature=-1.0: must be 0 or more"),
        ({"top_k": -1}, r"sampling.top_k=-1: must be 0 or more"),
        ({"top_p": 0.0}, r"sampling.top_p=0.0: must be above 0, and at most 1"),
        ({"top_p": 1.5}, r"sampling.top_p=1.5: must be above 0, and at most 1"),
        ({"min_p": 2.0}, r"sampling.min_p=2.0: must be between 0 \(no filter\) and 1"),
        ({"repetition_penalty": 0.0}, r"sampling.repetition_penalty=0.0: must be above 0"),
    ],
)
def test_what_is_no_distribution(fields, message):
    with pytest.raises(UserError, match=message):
        SamplingParams(**fields)


def test_old_names_of_delimiters_are_still_read(capsys):
    argv = ["--thinking.delimiters.stops", '["</s>"]', "--thinking.cue", "So:"]
    thinking = parse(Command, argv, command="x").thinking
    assert tuple(thinking.delimiters.stop) == ("</s>",) and thinking.answer_prefix == "So:"
    said = capsys.readouterr().err
    assert "thinking.delimiters.stops is now called thinking.delimiters.stop" in said
