"""The puzzle corpus against brute force: arithmetic, verdicts, splits, teacher, tokenizer."""

import itertools
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from jaxs1.config import UserError
from jaxs1.tasks import puzzle_corpus, puzzles
from jaxs1.tasks.puzzle_corpus import Teacher
from jaxs1.tasks.puzzles import Problem
from tests.tasks.puzzle_oracle import brute_force, check_arithmetic, parse_question

EXAMPLE = Problem((7, 4, 6, 2), 1)
EXAMPLE_LINES = [
    "a) 7*4=28 +6=34 high -6=22 high +2=30 high -2=26 high",
    "b) 7*6=42 +4=46 high -4=38 high +2=44 high -2=40 high",
    "c) 7*2=14 +4=18 high -4=10 high +6=20 high -6=8 high",
    "Wait",
    "d) 4*6=24 +7=31 high -7=17 high +2=26 high -2=22 high",
    "Wait",
    "e) 4*2=8 +7=15 high -7=1 yes",
]
SMALL = {"base_documents": 1500, "sft_examples": 1000}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A corpus with a short base part."""
    folder = tmp_path_factory.mktemp("puzzles") / "corpus"
    puzzle_corpus.write_corpus(folder, seed=0, **SMALL)
    return folder


@pytest.fixture(scope="module")
def tokenizer(corpus):
    """The corpus's tokenizer, loaded as a user would."""
    return AutoTokenizer.from_pretrained(corpus / "tokenizer")


@pytest.fixture(scope="module")
def traces() -> list[dict]:
    """A trace for every training question."""
    rng = np.random.default_rng(7)
    return [Teacher().trace(p, rng) for p in puzzles.all_problems("train")]


def read(path: Path) -> list[dict]:
    """All records of a jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def chat(tokenizer, trace: dict) -> str:
    """The whole training text of a trace, as s1 renders it."""
    thinking = trace["thinking_trajectories"][0]
    reply = f"<|im_start|>think\n{thinking}\n<|im_start|>answer\n{trace['attempt']}"
    messages = [
        {"role": "user", "content": trace["question"]},
        {"role": "assistant", "content": reply},
    ]
    return tokenizer.apply_chat_template(messages, tokenize=False)


def test_candidates_are_every_expression_up_to_the_order_of_the_factors():
    """The fixed order's 24 candidates miss nothing that brute force finds."""
    for digits in itertools.combinations(range(1, 8), 4):
        ours = {c.expression: c.value for c in puzzles.candidates(digits)}
        every = brute_force(digits)
        assert len(ours) == 24 and ours.items() <= every.items()
        assert set(every.values()) == set(ours.values())
        target = max(ours.values())
        assert {c.value for c in puzzles.solve(Problem(digits, target))} == {target}
        assert set(ours.values()) <= set(puzzles.VALUES)


def test_splits_are_disjoint_pinned_and_complete():
    """Pinned, because a different split would turn old test numbers into training numbers."""
    splits = puzzles.split_sets()
    assert {name: len(sets) for name, sets in splits.items()} == {"train": 25, "dev": 5, "test": 5}
    assert len(set().union(*splits.values())) == 35
    assert splits["dev"] == ((1, 2, 4, 6), (1, 3, 5, 7), (1, 4, 5, 7), (2, 3, 5, 7), (2, 3, 6, 7))
    assert splits["test"] == ((1, 3, 6, 7), (2, 3, 4, 7), (2, 4, 5, 7), (2, 5, 6, 7), (3, 4, 5, 7))
    counts = {name: len(set(puzzles.all_problems(name))) for name in splits}
    assert counts == {"train": 9480, "dev": 1944, "test": 2208}
    assert all(puzzles.solve(p) and p.target > 0 for p in puzzles.all_problems("test"))


def test_written_questions_stay_in_their_split(corpus):
    """No held-out set stands in the base corpus or in a trace; no question comes twice."""
    splits = {name: set(sets) for name, sets in puzzles.split_sets().items()}
    counts = {"sft": 1000, "train": 4000, "dev": 400, "test": 400}
    for name, count in counts.items():
        split = "train" if name == "sft" else name
        records = read(corpus / f"{name}.jsonl")
        assert len({r["question"] for r in records}) == len(records) == count
        for record in records:
            assert parse_question(record["question"]) == (record["target"], record["numbers"])
            assert tuple(sorted(record["numbers"])) in splits[split]
            assert Problem.from_record(record).question == record["question"]
        if name != "sft":
            assert all(set(r) == {"question", "numbers", "target"} for r in records)
    taught = {r["question"] for r in read(corpus / "sft.jsonl")}
    assert taught.isdisjoint(r["question"] for r in read(corpus / "train.jsonl"))
    text = (corpus / "base.jsonl").read_text()
    shown = {tuple(sorted(map(int, s.split(",")))) for s in re.findall(r"\d(?:,\d)+", text)}
    assert shown <= splits["train"]
    every_line = "\n".join(r["text"] for r in read(corpus / "base.jsonl")).splitlines()
    for line in every_line:
        if "*" in line and not re.search("low|high|yes", line):  # the drills: three digits a line
            assert len(set(re.findall(r"\d", re.sub(r"=-?\d+", "", line)))) == 3


def test_base_documents_are_right_and_mixed_as_designed(corpus):
    """Every sum, verdict and layout; the shares within four standard deviations."""
    counts = dict.fromkeys(["worksheet", "drawn", "spot", "hit", "compare", "calc", "express"], 0)
    compare_yes = compare_lines = 0
    pages = [r["text"] for r in read(corpus / "base.jsonl")]
    assert all(page.endswith("\n") for page in pages)
    documents = [text for page in pages for text in page.split("\n\n")]
    for text in documents:
        assert not re.search(r"Wait|Answer|think|<\|", text)
        head, *lines = text.splitlines()
        if " from " in head:
            target, numbers = parse_question(head)
            letters = [line[0] for line in lines]
            tried = [check_arithmetic(line.split(") ")[1], target) for line in lines]
            expressions = [expression for line in tried for expression, _ in line]
            order = [
                f"{x}*{y}{sign}{z}"
                for x, y in itertools.combinations(numbers, 2)
                for z in numbers
                if z not in (x, y)
                for sign in "+-"
            ]
            places = [order.index(line[0][0]) // 4 for line in tried]
            assert letters == ["abcdef"[place] for place in places]
            if len(lines) == 1:
                counts["spot"] += 1
                counts["hit"] += tried[0][0][1]
                assert len(expressions) == 1 and expressions[0] in order
            else:
                counts["worksheet"] += 1
                assert expressions == [x for n in places for x in order[4 * n : 4 * n + 4]]
                assert len(lines) == 6
                counts["drawn"] += places != list(range(6))
                assert any(hit for line in tried for _, hit in line) or places != list(range(6))
        elif head.startswith("Make"):
            counts["compare"] += 1
            target = int(head.removeprefix("Make "))
            for line in lines:
                value, word = re.fullmatch(r"=(-?\d+) (\w+)", line).groups()
                assert word == ("low", "yes", "high")[int(np.sign(int(value) - target)) + 1]
                compare_yes += word == "yes"
                compare_lines += 1
        elif " " in head:
            counts["calc"] += 1
            for line in [head, *lines]:
                plus, minus = (expression for expression, _ in check_arithmetic(line, None))
                assert plus.replace("+", "-") == minus
        else:
            counts["express"] += 1
            for line in [head, *lines]:
                expression, value = line.split("=")
                assert eval(expression) == int(value)

    def near(count: int, total: int, share: float) -> bool:
        return abs(count / total - share) < 4 * np.sqrt(share * (1 - share) / total)

    total = len(documents)
    assert total == SMALL["base_documents"]
    shares = {"worksheet": 0.5, "compare": 0.2, "calc": 0.15, "spot": 0.1, "express": 0.05}
    assert all(near(counts[kind], total, share) for kind, share in shares.items()), counts
    assert near(counts["drawn"], counts["worksheet"], 0.5)
    assert near(counts["hit"], counts["spot"], 0.5)
    assert near(compare_yes, compare_lines, 1 / 3 * (1 + 1 / 53))


def test_every_trace_is_an_honest_search(traces):
    """Lines right and in order; a found hit is answered, a search given up answers its last try."""
    for trace in traces[::4]:
        target, numbers = parse_question(trace["question"])
        lines = trace["thinking_trajectories"][0].split("\n")
        answer = trace["attempt"].removeprefix("Final Answer: ")
        assert trace["answer_correct"] == (brute_force(numbers)[answer] == target)
        pairs = [f"{x}*{y}" for x, y in itertools.combinations(numbers, 2)]
        start = "abcdef".index(lines[0][0])
        pairs, letters = pairs[start:] + pairs[:start], "abcdefabcde"[start : start + 6]
        searched, hit, waits = 0, None, 0
        for previous, line in itertools.pairwise(["", *lines]):
            if line == "Wait":
                assert previous not in ("", "Wait")
                waits += 1
                continue
            tried = check_arithmetic(line.split(") ")[1], target)
            if hit is None:  # a fresh line: the next pair, after a Wait from the fourth on
                assert line.startswith(f"{letters[searched]}) {pairs[searched]}=")
                searched += 1
                assert previous == "Wait" or searched <= 3
                assert [yes for _, yes in tried[:-1]] == [False] * (len(tried) - 1)
                last, found = tried[-1]
                hit = line if found else None
                assert found or len(tried) == 4
            else:  # nothing but the same line follows it
                assert previous == "Wait" and line == hit
        assert lines[-1] != "Wait" and waits <= 6
        assert answer == last and trace["answer_correct"] == (hit is not None)
        assert hit is not None or 3 <= searched < 6


def test_example_trace_of_the_design():
    """A teacher that never gives up writes the design's example, word for word."""
    trace = Teacher(rotate=0, give_up=0, hesitate=0, recheck=0).trace(
        EXAMPLE, np.random.default_rng(0)
    )
    assert trace == {
        "question": "Make 1 from 7,4,6,2",
        "thinking_trajectories": ["\n".join(EXAMPLE_LINES)],
        "attempt": "Final Answer: 4*2-7",
        "numbers": [7, 4, 6, 2],
        "target": 1,
        "answer_correct": True,
    }


def test_teacher_parameters_do_what_they_say():
    """The extremes of giving up, of hesitating, of re-checking and of its lever for late hits."""
    rng = np.random.default_rng(0)
    steady = partial(Teacher, rotate=0, hesitate=0)
    wary = steady(give_up=0, hesitate=1).trace(EXAMPLE, rng)["thinking_trajectories"][0]
    fresh = [line for line in EXAMPLE_LINES if line != "Wait"]
    assert wary == "\nWait\n".join(fresh)
    assert steady(give_up=1).trace(EXAMPLE, rng)["attempt"] == "Final Answer: 7*2-6"
    brief = steady(give_up=0, max_waits=1).trace(EXAMPLE, rng)
    assert brief["thinking_trajectories"][0].split("\n") == EXAMPLE_LINES[:5]
    assert brief["attempt"] == "Final Answer: 4*6-2" and not brief["answer_correct"]
    late = steady(give_up=0, recheck=0, recheck_late=1).trace(EXAMPLE, rng)
    check = ["Wait", EXAMPLE_LINES[-1]]
    assert late["thinking_trajectories"][0].split("\n") == EXAMPLE_LINES + 4 * check
    early = steady(recheck=0, recheck_late=1).trace(Problem((7, 4, 6, 2), 34), rng)
    assert early["thinking_trajectories"] == ["a) 7*4=28 +6=34 yes"]
    eager = steady(recheck=1).trace(Problem((7, 4, 6, 2), 34), rng)
    assert eager["thinking_trajectories"][0].count("Wait") == 6
    with pytest.raises(ValueError, match="four distinct digits"):
        Problem((1, 2, 3, 8), 5)


def shares(records: list[dict]) -> np.ndarray:
    """The shares of correct traces and of traces with a Wait."""
    pairs = [(r["answer_correct"], "Wait" in r["thinking_trajectories"][0]) for r in records]
    return np.mean(pairs, axis=0)


def test_teacher_statistics_are_those_of_its_parameters(traces):
    """Against the exact expectation: 0.4 for each further line, a Wait at 0.3 or 0.4.

    The first line is each of the six at 1/12, and the first of them at 1/2 more.
    """
    correct, wait = [], []
    for trace in traces:
        _, numbers = parse_question(trace["question"])
        x, y = zip(*itertools.combinations(numbers, 2), strict=True)
        on_line = [
            abs(trace["target"] - a * b) in set(numbers) - {a, b} for a, b in zip(x, y, strict=True)
        ]
        lines = [(on_line[start:] + on_line[:start]).index(True) for start in range(6)]
        chances = np.full(6, 1 / 12) + [1 / 2, 0, 0, 0, 0, 0]
        right = [0.4 ** max(0, n - 2) for n in lines]
        waits = [1 - 0.7 ** min(n, 2) * 0.6 for n in lines]
        correct.append(chances @ right)
        wait.append(chances @ waits)
    expected = np.array([np.mean(correct), np.mean(wait)])
    assert np.allclose(expected, [0.6896, 0.6102], atol=0.0005)
    bound = 3 * np.sqrt(expected * (1 - expected) / len(traces))
    assert np.all(np.abs(shares(traces) - expected) < bound)


def test_teacher_statistics_are_those_of_the_design():
    """67 % right, 38 % with a Wait, where it re-checks with 0.35."""
    rng = np.random.default_rng(8)
    records = [
        Teacher(rotate=0, hesitate=0, recheck=0.35).trace(p, rng)
        for p in puzzles.sample_problems("train", 1000, rng)
    ]
    design = np.array([0.67, 0.38])  # a sample too: the difference has twice the variance
    bound = 3 * np.sqrt(2 * design * (1 - design) / 1000)
    assert np.all(np.abs(shares(records) - design) < bound)


def test_no_trace_is_longer_than_a_page(corpus, tokenizer):
    chats = [chat(tokenizer, trace) for trace in read(corpus / "sft.jsonl")]
    lengths = [len(ids) for ids in tokenizer(chats)["input_ids"]]
    assert 200 <= max(lengths) < puzzle_corpus.PAGE


def test_pages_are_nearly_full(corpus, tokenizer):
    pages = [r["text"] for r in read(corpus / "base.jsonl")]
    lengths = [len(ids) for ids in tokenizer(pages)["input_ids"]]
    assert max(lengths) <= puzzle_corpus.PAGE
    assert np.mean(lengths) > 0.9 * puzzle_corpus.PAGE


def test_corpus_is_a_function_of_its_seed(corpus, tmp_path):
    """Same seed, same bytes in every file; another seed changes all but the questions."""

    def contents(folder: Path) -> dict[str, bytes]:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    puzzle_corpus.write_corpus(tmp_path / "same", seed=0, **SMALL)
    puzzle_corpus.write_corpus(tmp_path / "other", seed=1, **SMALL)
    first, same, other = map(contents, (corpus, tmp_path / "same", tmp_path / "other"))
    assert first == same
    assert {"base.jsonl", "sft.jsonl", "tokenizer/tokenizer.json"} <= first.keys() == other.keys()
    assert first["base.jsonl"] != other["base.jsonl"] and first["sft.jsonl"] != other["sft.jsonl"]
    assert first["dev.jsonl"] == other["dev.jsonl"] and first["test.jsonl"] == other["test.jsonl"]


def test_corpus_appears_complete_or_not_at_all(corpus, tmp_path, monkeypatch, capsys):
    """A failure leaves nothing behind; an existing folder is never touched."""
    with pytest.raises(UserError, match="exists already; remove it"):
        puzzle_corpus.write_corpus(corpus, **SMALL)
    with pytest.raises(SystemExit):
        puzzle_corpus.main([str(corpus)])
    assert "remove it" in capsys.readouterr().err
    with pytest.raises(ValueError, match="9480"):
        puzzle_corpus.write_corpus(tmp_path / "new", base_documents=1, sft_examples=9481)

    monkeypatch.setattr(puzzle_corpus, "train_tokenizer", lambda *_, **__: 1 // 0)  # half-way
    with pytest.raises(ZeroDivisionError):
        puzzle_corpus.write_corpus(tmp_path / "new", base_documents=1, sft_examples=1)
    assert list(tmp_path.iterdir()) == []


def test_command_prints_the_summary(tmp_path, monkeypatch, capsys):
    """The command's arguments arrive and its table shows every figure."""
    full = puzzle_corpus.write_corpus

    def small(folder, seed):
        assert seed == 3
        return full(folder, seed, base_documents=50, sft_examples=20)

    monkeypatch.setattr(puzzle_corpus, "write_corpus", small)
    puzzle_corpus.main([str(tmp_path / "out"), "--seed", "3"])
    printed = capsys.readouterr().out
    shown = r"base records +1[678]\nsft records +20\ntrain records +4,000\ndev records +400\n"
    assert re.search(shown, printed)
    assert re.search(r"share correct +0\.\d{3}\n", printed)


def test_tokenizer_is_the_same_beside_a_model(corpus, tokenizer, tmp_path):
    """transformers rebuilds the tokenizer of a folder whose config.json says qwen2."""
    for file in (corpus / "tokenizer").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    texts = [r["text"] for r in read(corpus / "base.jsonl")[:300]]
    beside = AutoTokenizer.from_pretrained(tmp_path)
    assert beside(texts)["input_ids"] == tokenizer(texts)["input_ids"]


def test_tokenizer_round_trip(corpus, tokenizer):
    """Decoding undoes encoding: on the corpus, on whole chats, and on text never seen."""
    texts = [r["text"] for r in read(corpus / "base.jsonl")]
    texts += [chat(tokenizer, trace) for trace in read(corpus / "sft.jsonl")[:200]]
    texts += ["Ünïcode 漢字 🙂\r\n\t  x 123456 don't , .", " ", ""]
    for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        assert tokenizer.decode(ids) == text


def test_tokens(tokenizer):
    """What recipes and budgets rely on: the vocabulary's size and the one-token words."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_pad|>"]
    assert tokenizer.convert_tokens_to_ids(specials) == [0, 1, 2, 3]
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    words = [str(n) for n in range(48)] + [" high", " low", " yes", "Wait", "Make", " from"]
    words += ["system", "user", "assistant", "think", "answer", "Final", " Answer", "\n", *specials]
    words += [f"{letter}) " for letter in "abcdef"]
    assert {word: len(tokenizer.encode(word)) for word in words} == dict.fromkeys(words, 1)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("123456")) == ["12", "34", "5", "6"]
    assert len(tokenizer.encode(EXAMPLE_LINES[0])) == 26
    assert 340 <= len(tokenizer) <= 366


def test_chat_template(tokenizer):
    """ChatML without a system prompt of its own, with or without the generation prompt."""
    texts = {"user": "Make 1 from 7,4,6,2", "assistant": "Final Answer: 4*2-7", "system": "Brief."}
    turn = {role: f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in texts.items()}

    def render(*roles, **options) -> str:
        messages = [{"role": role, "content": texts[role]} for role in roles]
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)

    assert render("user") == turn["user"]
    assert render("user", add_generation_prompt=True) == turn["user"] + "<|im_start|>assistant\n"
    assert render("user", "assistant") == turn["user"] + turn["assistant"]
    assert render("system", "user") == turn["system"] + turn["user"]
