"""The command: what it prints and writes, and one clear line for everything that is wrong."""

import io
import json

import pytest

from jaxs1 import generate
from jaxs1.config import UserError
from jaxs1.decoding.budget import TokenKind
from jaxs1.decoding.outputs import Completion, StreamOutput, TokenLog
from tests.decoding.engines import LIMITS, encode, tokenizer, write_model

#: Fields of a completion that users may rely on.
DOCUMENTED = (
    "prompt_ids", "thinking_ids", "answer_ids", "thinking", "answer", "interventions",
    "finish_reason", "usage", "settings",
)  # fmt: skip
SHORT = ("--thinking.max=6", "--thinking.max_answer_tokens=5", "--thinking.min_answer_tokens=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    likes = {"<|im_start|>": 3.0, "<|im_end|>": 2.0}
    write_model(folder, {encode(text)[0]: amount for text, amount in likes.items()})
    return folder


def run(folder, *arguments):
    limits = [f"--limits.{name}={value}" for name, value in vars(LIMITS).items()]
    return generate.main(["--model", str(folder), *limits, *map(str, arguments)])


def write_lines(path, lines):
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines) + "\n")
    return path


def test_a_prompt_streams(folder, capsys):
    wait = ("--thinking.num_waits=1", "--thinking.min=2")
    assert run(folder, "--prompt", "What is 12 + 30?", *SHORT, *wait) == 0
    out, err = capsys.readouterr()
    assert "parameters, float32, xla; 1 x 1" in err and "tokens in" in err
    prompts = write_lines(folder.parent / "one.jsonl", [{"prompt": "What is 12 + 30?"}])
    output = folder.parent / "one.out.jsonl"
    assert run(folder, "--prompts", prompts, "--output", output, *SHORT, *wait) == 0
    (record,) = map(json.loads, output.read_text().splitlines())
    assert out == tokenizer().decode(record["tokens"]) + "\n"
    chat = "<|im_start|>user\nWhat is 12 + 30?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer().decode(record["prompt_ids"]) == chat + "<|im_start|>think"


@pytest.mark.slow
def test_prompts_and_their_own_settings(folder, tmp_path, capsys):
    lines = [
        {"question": "How many?", "id": 7, "n": 2, "sampling": {"temperature": 1.0}, "seed": 3},
        {"messages": [{"role": "user", "content": "Hmm"}], "thinking": {"mode": "off"}},
        "",
        {"prompt": "Wait", "thinking": {"max": 3, "wait_strings": ["Hmm", "Wait"], "num_waits": 1}},
    ]
    prompts, output = write_lines(tmp_path / "p.jsonl", lines), tmp_path / "out.jsonl"
    assert run(folder, "--prompts", prompts, "--output", output, "--system=Sum", *SHORT) == 0
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted((r["request"], r["index"]) for r in records) == [(0, 0), (0, 1), (1, 0), (2, 0)]
    for r in records:
        assert all(name in r for name in DOCUMENTED)
        assert set(r["usage"]) > {"prompt_tokens", "thinking_tokens", "answer_tokens"}
        assert r["error"] is None and len(r["answer_ids"]) <= 5
        assert tokenizer().decode(r["prompt_ids"]).startswith("<|im_start|>system\nSum<|im_end|>")
        assert len(r["forced"]) == r["usage"]["forced_tokens"]
    by_request = {r["request"]: r for r in records}
    first, plain, own = (by_request[i] for i in range(3))
    assert (first["id"], first["question"], first["seed"]) == (7, "How many?", 3)
    assert first["settings"]["sampling"]["temperature"] == 1.0
    assert plain["settings"]["thinking"]["mode"] == "off" and plain["thinking_ids"] == []
    assert len(own["thinking_ids"]) <= 3
    assert own["settings"]["thinking"]["wait_strings"] == ["Hmm", "Wait"]
    assert own["settings"]["thinking"]["max_answer_tokens"] == 5  # the command's
    assert capsys.readouterr().out == ""


def test_invalid_prompts_do_not_stop_the_others(folder, tmp_path, capsys):
    lines = [
        {"prompt": "How many?"},
        {"prompt": " "},
        {"prompt": "How many? " * 40},
        {"prompt": "How many?", "thinking": {"wait_strings": [""], "num_waits": 1}},
        {"prompt": "How many?", "thinking": {"max": 1000}},
        {"prompt": "How many?", "thinking": {"min": 60, "max": 60}},
        {"prompt": "How many?"},
    ]
    prompts, output = write_lines(tmp_path / "p.jsonl", lines), tmp_path / "out.jsonl"
    assert run(folder, "--prompts", prompts, "--output", output, *SHORT) == 1
    said = capsys.readouterr().err.splitlines()
    expected = {
        1: "prompt: is empty; give at least one token",
        2: "tokens: leaves 0 of the context's 64",
        3: "thinking.wait_strings='': encodes to no token; set a non-empty text",
        4: "thinking.max=1000: clamped to",
        5: "thinking.min=60: does not fit",
    }
    for number, words in expected.items():
        (line,) = [line for line in said if line.startswith(f"prompt {number}: ")]
        assert words in line
    assert len(said) == len(expected) + 2
    records = {r["request"]: r for r in map(json.loads, output.read_text().splitlines())}
    assert len(records) == len(lines)
    assert [i for i, r in sorted(records.items()) if r["error"]] == [1, 2, 3, 5]
    assert records[0]["tokens"] == records[6]["tokens"] != []
    assert records[4]["note"] and records[4]["tokens"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"prompt: give either --prompt TEXT or --prompts FILE.jsonl"),
        (["--prompt=a", "--prompts=b"], r"prompt: give either"),
        (["--prompt", " "], r"prompt=' ': is empty; give a question"),
        (["--prompt=a", "--n=0"], r"n=0: must be at least 1"),
        (["--prompt", "half \udcff"], r"prompt: contains .udcff, half of a surrogate pair"),
        (
            ["--prompt=a", "--system", "\udcff"],
            r"system: contains .udcff, half of a surrogate pair",
        ),
        (["--prompt=a", "--thinking.preset=s2"], r"thinking.preset='s2': unknown preset; choose"),
        (["--prompt=a", "--thinking.mode=lax"], r"thinking.mode=lax: must be .*strict.*s1_harness"),
        (["--prompt=a", "--thinking.wait=x"], r"thinking.wait: no such field; did you mean"),
        (["--prompt=a", "--limits.decode_steps=0"], r"limits.decode_steps=0: must be at least 1"),
        (["--prompt=a", "--output=setup.cfg"], None),
        (["--prompts=nowhere.jsonl"], r"prompts=nowhere.jsonl: cannot be read \(.*No such file"),
        (["--prompt=a", "--model="], r"model='': must name the weights; give --model DIR"),
        (["--prompt=a", "--model=nowhere"], r"nowhere: no such folder; give a folder or a hub id"),
        (["--prompt=a", "--model=no/where"], r"no/where: "),
        (["--prompt=a", "--impl=magic"], r"impl=magic: must be .*xla"),
        (["--prompt=a", "--parallel.tensor=3"], r"tensor=3: must divide"),
        (["--prompt=a", "--parallel.replicas=99"], r"needs 99 devices, there are 8; lower one"),
        (["--prompt=a", "--parallel.tensor=0"], r"parallel.tensor=0: must be at least 1"),
    ],
)
def test_what_is_wrong_with_the_command(folder, tmp_path, arguments, message):
    if message is None:
        (tmp_path / "out.jsonl").write_text("precious")
        arguments = ["--prompt=a", f"--output={tmp_path / 'out.jsonl'}"]
        message = r"output=.*out.jsonl: exists; remove it or give another name"
    with pytest.raises(UserError, match=message) as caught:
        run(folder, *arguments)
    assert "\n" not in str(caught.value)
    if (tmp_path / "out.jsonl").exists():
        assert (tmp_path / "out.jsonl").read_text() == "precious"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"is not valid JSON \(.*\); fix or remove the line"),
        ("[1]", r"must be a JSON object, is a list"),
        ({"text": "a"}, r"has no prompt; give one of prompt, question, problem, or messages"),
        ({"prompt": 5}, r"has no prompt"),
        ({"messages": []}, r"messages: must be \[\{"),
        ({"messages": ["a"]}, r"messages: must be \[\{"),
        (
            {"messages": [{"role": "user", "content": None}]},
            r"messages\[0\].content: must be a str",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            r"messages\[0\].con",
        ),
        (
            {"messages": [{"role": "user", "content": "a", "weight": 1}]},
            r"messages\[0\].weight: has",
        ),
        ({"messages": [{"role": "user", "content": "a", "id": 1}]}, r"messages\[0\].id: unknown"),
        ({"prompt": "a", "tools": {"name": "f"}}, r"tools: must be a list of objects"),
        ({"prompt": "half \ud83d"}, r"prompt: contains .ud83d, half of a surrogate pair"),
        (
            {"prompt": "a", "thinking": {"wait_strings": ["\udc00"]}},
            r"thinking.wait_strings\[0\]: con",
        ),
        ({"prompt": "a", "tags": ["\udc00"]}, r"tags\[0\]: contains .udc00"),
        ('{"prompt": ' + "[" * 100_000, r"is not valid JSON \("),
        ('{"prompt": "a", "tags": ' + "[" * 500 + "]" * 500 + "}", r"tags.*: is nested more than"),
        ({"messages": [{"role": "user"}]}, r"messages: must be \[\{"),
        ({"prompt": "a", "n": 0}, r"n=0: must be at least 1"),
        ({"prompt": "a", "n": "four"}, r"n=four: must be int"),
        ({"prompt": "a", "seed": None}, r"seed=null: must have a value; leave it out"),
        ({"prompt": "a", "thinking": "long"}, r"thinking: must be an object of fields"),
        ({"prompt": "a", "thinking": {"maximum": 5}}, r"thinking.maximum: no such field; did you"),
        ({"prompt": "a", "thinking": {"max": "many"}}, r"thinking.max=many: must be int"),
        ({"prompt": "a", "thinking": {"max": None}}, r"thinking.max=null: must have a value"),
        ({"prompt": "a", "thinking": {"wait_strings": "Wait"}}, r"thinking.wait_strings=Wait: "),
        ({"prompt": "a", "thinking": {"preset": "s2"}}, r"thinking.preset='s2': unknown preset"),
        ({"prompt": "a", "sampling": {"temperature": "hot"}}, r"sampling.temperature=hot: must be"),
        ({"prompt": "a", "sampling": {"top_p": 0}}, r"sampling.top_p=0.0: must be above 0"),
    ],
)
def test_what_is_wrong_with_a_line(tmp_path, line, message):
    """Known before the model is opened, with the number of the line."""
    prompts = write_lines(tmp_path / "p.jsonl", [{"prompt": "a"}, line])
    with pytest.raises(UserError, match=rf"p.jsonl:2: {message}") as caught:
        run("no such model", "--prompts", prompts)
    assert "\n" not in str(caught.value)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_thinking_dimmed_and_forced_tokens_marked():
    """Also text whose characters are spread over several tokens and events."""
    parts = [
        ("a ü", TokenKind.THINKING, False),
        ("Wait", TokenKind.WAIT, True),
        ("€", TokenKind.THINKING, False),
        ("\n<|im_start|>answer", TokenKind.CLOSE, True),
        ("42€", TokenKind.ANSWER, False),
    ]
    out = Terminal()
    printer = generate.Printer(tokenizer(), out)
    for text, kind, forced in parts:
        for token in encode(text):
            printer.show(StreamOutput(0, 0, TokenLog([token], [forced], [kind]), None))
    printer.show(StreamOutput(0, 0, TokenLog(), Completion([1])))
    plain = generate.PLAIN
    dim, mark = plain + generate.DIM, plain + generate.FORCED
    assert out.getvalue() == (
        f"{dim}a ü{mark}Wait{dim}€{mark}\n<|im_start|>answer{plain}{plain}42€\n"
    )


def test_a_process_ends_with_one_line(run_module):
    done = run_module("jaxs1.generate", "--model", "x", "--prompt", "a", "--thinking.preset", "s2")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: thinking.preset='s2': unknown preset")
    assert "Traceback" not in done.stderr
