"""The retrieval example: its passages are found, and its two commands run against the server."""

import subprocess
import sys
from importlib import util

import pytest

pytest.importorskip("bm25s")
from tests.conftest import ROOT

PATH = ROOT / "examples" / "rag" / "rag.py"


@pytest.fixture(scope="module")
def rag():
    spec = util.spec_from_file_location("rag", PATH)
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_question_finds_its_passage(rag):
    retriever = rag.Retriever(rag.read("corpus.jsonl"))
    questions = rag.read("questions.jsonl")
    for item in questions:
        assert item["source"] in [p["id"] for p in retriever.find(item["question"])], item
    texts = {p["id"]: p["text"] for p in retriever.passages}
    stated = [rag.is_correct(texts[q["source"]], q["answer"]) for q in questions]
    assert stated.count(False) == 2  # which have to be computed


def test_an_answer_is_correct_between_words_only(rag):
    assert rag.is_correct("It was Signe Halvard [1].", "signe halvard")
    assert not rag.is_correct("It has 1,264 pipes.", "64") and not rag.is_correct("541", "41")


def run(url, *options):
    done = subprocess.run(
        [sys.executable, str(PATH), "--url", f"{url}/v1", *options], capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_an_answer_with_what_was_retrieved(url):
    """The model says 42, whatever it reads, and names no passage."""
    lines = run(url, "--question", "Who is the captain of the Corriedale?", "--budget", "40")
    assert lines[0] == "42"
    assert "  retrieved: The ferry from Brannick (ferry)" in lines
    assert lines[-1] == "  thinking: 1 of 40, by model"


def test_a_table(url):
    lines = run(url, "--table", "0,16")
    assert lines[2] == "| 0 | 0 % | 0 % | 0 | |" and lines[3] == "| 16 | 0 % | 0 % | 1 | |"
