"""Every prompt is prefilled once and in order, rows and pages have one owner, and all come back."""

import ast
import random
from collections import Counter

import pytest

from jaxs1.config import UserError
from jaxs1.decoding.params import Request, ThinkingParams
from jaxs1.decoding.prefill_batches import PrefillBudget
from jaxs1.decoding.scheduler import Limits, Scheduler
from jaxs1.decoding.tokenized_thinking import TokenizedThinking
from jaxs1.model.kv_cache import NULL_PAGE, PAGE
from tests.conftest import ROOT

LIMITS = Limits(max_num_seqs=5, decode_steps=8, prefill_chunk_tokens=48)
CONTEXT = 4 * PAGE
NUM_PAGES = 14


def thinking_of(answer):
    """No thinking, an answer of at most so many tokens; -1: as long as the context."""
    params = ThinkingParams(mode="off", max_answer_tokens=answer, min_answer_tokens=1)
    return TokenizedThinking(params, (), (), (), (), (), (), (), (), ())


def add(scheduler, number, length, n=1, answer=20):
    thinking = thinking_of(answer)
    prompt = [number] * length
    scheduler.add(number, Request(prompt, thinking.thinking, n=n), thinking, prompt)


def budget_of(tokens):
    """Time for so many tokens, padding included: each takes a second."""
    return tokens and PrefillBudget(tokens, lambda shape: shape.tokens)


def scheduler_of(limits=LIMITS, num_pages=NUM_PAGES):
    return Scheduler(limits, context=CONTEXT, num_pages=num_pages)


class Device:
    """Does what a schedule says and checks it, in sets and dictionaries."""

    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.rows = {}  # row -> sequence
        self.cached = Counter()  # sequence -> tokens of its prompt in its own pages
        self.written = {}  # page -> (number, index of the page in the prompt), tokens
        self.inserted = []

    def run(self, schedule, limit=None):
        for source, target in schedule.page_copies:
            assert source in self.written and target not in (NULL_PAGE, source)
            self.written[target] = self.written[source]
        size = sum(batch.shape.tokens for batch in schedule.prefills)
        if limit is not None and schedule.prefills:
            assert size <= max(limit, self.scheduler.buckets.widths[0])
        for batch in schedule.prefills:
            self.prefill(batch)
        for row, s in schedule.inserts:
            assert row not in self.rows
            self.check_prompt(s)
            self.rows[row] = s
            self.inserted.append((s.number, s.sample))
        if schedule.order is not None:
            assert sorted(schedule.order) == list(range(len(self.scheduler.rows)))
            self.rows = {i: self.rows[r] for i, r in enumerate(schedule.order) if r in self.rows}
        assert self.rows == dict(self.scheduler.running)
        if self.rows:
            assert max(self.rows) < schedule.num_rows <= len(self.scheduler.rows)
            reach = max(len(s.prompt) + len(s.log.tokens) for s in self.rows.values())
            assert PAGE * schedule.num_pages >= min(CONTEXT, reach + LIMITS.decode_steps)
        else:
            assert schedule.num_rows == 0

    def prefill(self, batch):
        assert len({id(s) for s, _, _ in batch.parts}) == len(batch.parts)
        width = batch.shape.width
        assert len(batch.parts) * width <= max(width, LIMITS.prefill_chunk_tokens)
        assert len(batch.parts) <= batch.shape.rows
        for s, start, end in batch.parts:
            assert start == self.cached[s] < end <= len(s.prompt) - 1
            assert end - start <= width and end <= batch.shape.pages * PAGE
            assert s.first is None  # the others share its prompt
            self.cached[s] = end
            for i in range(start // PAGE, -(-end // PAGE)):
                self.written[s.pages[i]] = (s.number, i, min(end - i * PAGE, PAGE))

    def check_prompt(self, s):
        """All of the prompt but its last token is in the sequence's pages."""
        length = len(s.prompt) - 1
        for i in range(-(-length // PAGE)):
            assert self.written[s.pages[i]] == (s.number, i, min(length - i * PAGE, PAGE))


def check_pages(scheduler):
    """No page has two owners, but for full pages of a prompt that samples share."""
    owners = {}
    for s in [*scheduler.prefilling, *scheduler.ready, *(s for _, s in scheduler.running)]:
        assert len(s.pages) == s.limits.num_pages
        for i, page in enumerate(s.pages):
            owners.setdefault(page, []).append((s, i))
    for users in owners.values():
        numbers = {(s.number, i) for s, i in users}
        assert len(numbers) == 1
        s, i = users[0]
        assert len(users) == 1 or (i + 1) * PAGE <= len(s.prompt) - 1


def finish_rows(scheduler, device, finished, rng=None):
    """Finish all running sequences; with `rng` let them grow and finish a quarter of them."""
    for row, s in scheduler.running:
        if rng is not None:
            s.log.tokens += [0] * rng.randrange(1, 3)
        if rng is None or rng.random() < 0.25:
            scheduler.finish(row)
            del device.rows[row]
            finished[s.number] += 1


@pytest.mark.parametrize("cancels", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_a_random_workload(seed, cancels):
    rng = random.Random(seed)
    limit = [None, 1, 40, 100][seed % 4]
    scheduler = scheduler_of()
    device = Device(scheduler)
    n_of, cancelled, finished = {}, set(), Counter()
    for step in range(400):
        if step < 250 and rng.random() < 0.5:
            number = len(n_of)
            n_of[number] = rng.choice([1, 1, 2, 4])
            length = rng.choice([1, 2, 17, 64, 65, 66, 100, 129, 200])
            add(scheduler, number, length, n_of[number], rng.choice([1, 10, 50, -1]))
        device.run(scheduler.schedule(budget_of(limit)), limit)
        check_pages(scheduler)
        finish_rows(scheduler, device, finished, rng)
        if cancels and n_of and rng.random() < 0.3:
            number = rng.randrange(max(0, len(n_of) - 10), len(n_of))
            expected = [row for row, s in scheduler.running if s.number == number]
            assert scheduler.cancel(number) == expected
            if finished[number] < n_of[number]:
                cancelled.add(number)
            for row in expected:
                del device.rows[row]
    for _ in range(1000):
        if not scheduler.busy:
            break
        device.run(scheduler.schedule())
        finish_rows(scheduler, device, finished)
    assert not scheduler.busy and scheduler.pages.num_free == scheduler.pages.size
    assert all(finished[i] == n for i, n in n_of.items() if i not in cancelled)
    assert len(cancelled) > 5 if cancels else not cancelled
    everything = {(number, sample) for number, n in n_of.items() for sample in range(n)}
    started = Counter(device.inserted)
    assert max(started.values()) == 1 and started.keys() <= everything
    assert {number for number, _ in everything - started.keys()} <= cancelled


def test_requests_are_admitted_in_order_of_submission():
    """A large request at the head is not overtaken by a small one that would fit."""
    scheduler = scheduler_of(num_pages=5)
    add(scheduler, 0, 65, answer=60)
    add(scheduler, 1, 200, answer=-1)
    add(scheduler, 2, 1, answer=1)
    device = Device(scheduler)
    device.run(scheduler.schedule())
    assert [s.number for _, s in scheduler.running] == [0]
    scheduler.finish(0)
    device.rows.clear()
    device.run(scheduler.schedule())
    assert [s.number for _, s in scheduler.running] == [1]


def test_prefill_alternates_with_decoding():
    """While nothing runs, a prompt is prefilled at once; then one batch before each decoding."""
    scheduler = scheduler_of()
    add(scheduler, 0, 150)
    schedule = scheduler.schedule()
    assert [[p[1:] for p in b.parts] for b in schedule.prefills] == [
        [(0, 48)], [(48, 96)], [(96, 144)], [(144, 149)],
    ]  # fmt: skip
    assert [row for row, _ in schedule.inserts] == [0]
    add(scheduler, 1, 100)
    assert [len(scheduler.schedule().prefills) for _ in range(4)] == [1, 1, 1, 0]
    assert [s.number for _, s in scheduler.running] == [0, 1]


def test_under_a_limit_short_prompts_do_not_wait_for_a_long_one():
    """Nor does the long one wait forever, though short ones come all the time."""
    scheduler = scheduler_of(num_pages=100)
    add(scheduler, 0, 200)
    device, came = Device(scheduler), {}
    for run in range(1, 40):
        if run % 2:
            add(scheduler, run, 40)
            came[run] = run
        device.run(scheduler.schedule(budget_of(48)), 48)
        for number, _ in device.inserted:
            assert run - came.pop(number, run) <= 1 or not number
        finish_rows(scheduler, device, Counter())
    assert (0, 0) in device.inserted and len(came) <= 1


def test_sequences_move_to_the_front_where_that_halves_the_rows():
    scheduler = scheduler_of(num_pages=40)
    for number in range(5):
        add(scheduler, number, 1)
    assert scheduler.schedule().num_rows == 5
    for row in (0, 2, 3):
        scheduler.finish(row)
    schedule = scheduler.schedule()
    assert schedule.order == [1, 4, 0, 2, 3] and schedule.num_rows == 2
    assert [s.number for _, s in scheduler.running] == [1, 4]


def test_a_request_that_can_never_fit_is_refused():
    scheduler = scheduler_of(num_pages=3)
    add(scheduler, 0, 100, answer=20)
    with pytest.raises(
        UserError, match=r"limits.kv_cache_tokens=128: too small .* need 192; raise"
    ):
        add(scheduler, 1, 100, n=2, answer=20)  # the second sample copies a page
    add(scheduler, 2, 65, n=2, answer=20)  # none, where the prompt fills its pages
    with pytest.raises(UserError, match=r"prompt of 300 tokens: leaves 0 of the context's 256"):
        add(scheduler, 3, 300)
    assert [s.number for s in scheduler.waiting] == [0, 2, 2]


@pytest.mark.parametrize("name", ["scheduler", "prefill_batches", "page_allocator"])
def test_no_jax(name):
    """Scheduling is host code, which a server calls between any two steps."""
    tree = ast.parse((ROOT / "jaxs1" / "decoding" / f"{name}.py").read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    assert not {module for module in imported if module.split(".")[0] in ("jax", "numpy")}
    device = ("engine", "decode_loop", "decode_state", "sampling", "budget")
    assert not imported & {f"jaxs1.decoding.{module}" for module in device}
