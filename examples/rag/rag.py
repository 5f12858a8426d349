"""Answers from retrieved passages, within a thinking budget, with their sources.

    pip install bm25s openai
    jaxs1 serve --model DIR
    python examples/rag/rag.py --question "Who is the captain of the Corriedale?" --budget 512
    python examples/rag/rag.py --table 0,256,1024

The second form asks all questions of questions.jsonl with and without passages, at several budgets,
and prints a table of the accuracy. The corpus is about an island that does not exist, so without
passages a model can only guess.
"""

import argparse
import json
import re
from pathlib import Path

import bm25s
from openai import OpenAI

HERE = Path(__file__).parent
RULES = (
    "Answer the question in a few words. Use only the passages, and name the numbers of those that "
    "you used, as in [1]. If they do not answer it, say so."
)
BARE = "Answer the question in a few words."


def read(name):
    """The objects of a JSONL file next to this one."""
    return [json.loads(line) for line in (HERE / name).read_text().splitlines()]


class Retriever:
    """Passages ranked with BM25."""

    def __init__(self, passages):
        self.passages = passages
        self._index = bm25s.BM25()
        texts = [f"{p['title']}. {p['text']}" for p in passages]
        self._index.index(bm25s.tokenize(texts, stopwords="en", show_progress=False),
                          show_progress=False)  # fmt: skip

    def find(self, question, k=3):
        """The k passages that fit a question best."""
        words = bm25s.tokenize(question, stopwords="en", show_progress=False)
        (numbers,), _ = self._index.retrieve(words, k=k, show_progress=False)
        return [self.passages[n] for n in numbers]


def messages(question, passages):
    """The conversation; the rules come first, so that all questions share their prefix."""
    if not passages:
        return [{"role": "system", "content": BARE}, {"role": "user", "content": question}]
    listed = "\n".join(f"[{i}] {p['title']}: {p['text']}" for i, p in enumerate(passages, 1))
    content = f"{listed}\n\nQuestion: {question}"
    return [{"role": "system", "content": RULES}, {"role": "user", "content": content}]


def ask(client, model, question, passages, budget, max_tokens=None):
    """The reply's text, the passages that it names, and what was done about the thinking."""
    reply = client.chat.completions.create(
        model=model,
        messages=messages(question, passages),
        temperature=0,
        max_tokens=max_tokens or (budget + 256 if budget >= 0 else 4096),
        extra_body={"thinking": {"budget_tokens": budget}},
    )
    choice = reply.choices[0]
    text = choice.message.content
    named = sorted({int(n) for n in re.findall(r"\[(\d+)\]", text)})
    return text, [passages[n - 1] for n in named if 0 < n <= len(passages)], choice.thinking


def is_correct(text, answer):
    """Whether the answer occurs in a text, between other words."""
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE) is not None


def table(client, model, retriever, budgets, questions):
    """Lines of a table: accuracy with and without passages at each budget."""
    yield f"| budget | with passages | without | thinking tokens | n = {len(questions)} |"
    yield "|---:|---:|---:|---:|---|"
    for budget in budgets:
        correct, used = {True: 0, False: 0}, 0
        for item in questions:
            for retrieves in correct:
                found = retriever.find(item["question"]) if retrieves else []
                text, _, thinking = ask(client, model, item["question"], found, budget)
                correct[retrieves] += is_correct(text, item["answer"])
                used += thinking["tokens"] * retrieves
        shares = [f"{100 * count / len(questions):.0f} %" for count in correct.values()]
        yield f"| {budget} | {shares[0]} | {shares[1]} | {used / len(questions):.0f} | |"


def main():
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", help="default: the server's")
    parser.add_argument("--question")
    parser.add_argument("--budget", type=int, default=512, help="thinking tokens; -1: no limit")
    parser.add_argument("--table", help="budgets, separated by commas")
    options = parser.parse_args()
    client = OpenAI(base_url=options.url, api_key="none")
    model = options.model or client.models.list().data[0].id
    retriever = Retriever(read("corpus.jsonl"))
    if options.table:
        budgets = [int(number) for number in options.table.split(",")]
        for line in table(client, model, retriever, budgets, read("questions.jsonl")):
            print(line, flush=True)
        return
    if not options.question:
        parser.error("give --question or --table")
    passages = retriever.find(options.question)
    text, named, thinking = ask(client, model, options.question, passages, options.budget)
    print(text)
    for passage in named or passages:
        print(f"  {'source' if named else 'retrieved'}: {passage['title']} ({passage['id']})")
    print(f"  thinking: {thinking['tokens']} of {thinking['budget']}, by {thinking['ended_by']}")


if __name__ == "__main__":
    main()
