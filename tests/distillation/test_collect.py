"""Progress for people, and what a limit of the cost allows."""

import pytest

from jaxs1.distillation.account import Account
from jaxs1.distillation.answers import Key, Stored
from jaxs1.distillation.collect import Failures, Progress, duration
from jaxs1.distillation.config import PriceConfig
from jaxs1.distillation.teachers import Job


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (11100, "3 h 5 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_the_last_line_has_tokens_dollars_and_failures(capsys):
    account = Account(PriceConfig(1, 4), max_tokens=9)
    account.add(Stored(0, 1_000_000, 500_000))
    failures = Failures(4, {Key("a", 0): "HTTP 500"})
    progress = Progress(2, account)
    progress.show(failures)
    progress.show(failures)
    assert capsys.readouterr().out == (
        "  2 of 2 answers, 1 failed; 1,000,000 prompt tokens, 500,000 of thinking and answers, "
        "$3.0000; 0 s left\n"
    )


def test_reserved_is_what_the_longest_answers_would_cost():
    """Prompts of 4 bytes and 256 tokens of a template; a dollar a token."""
    account = Account(PriceConfig(1e6, 1e6), max_tokens=40, max_cost=650)
    jobs = [Job(Key("q", i), [{"content": "1+1?"}], 0) for i in range(3)]
    assert [account.may_start(job) for job in jobs] == [True, True, False]  # 300 dollars each
    account.release(jobs[0].key)
    account.add(Stored(0, 4, 40))
    assert account.cost == 44 and account.may_start(jobs[2])  # 44 + 300 + 300
    account.release(jobs[1].key)
    account.add(Stored(0, 200, 100))
    assert not account.may_start(jobs[0])  # 344 + 300 + 300
    account.release(jobs[2].key)
    assert account.may_start(jobs[0])  # 344 + 300
