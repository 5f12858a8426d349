"""Pieces add up to the text before the first stop, whatever the cuts."""

import random

import pytest

from jaxs1.serving.answer_text import ChannelText


def expected(text, stops, strip):
    """The slow and obvious way."""
    ends = [(text.index(stop), stop) for stop in stops if stop in text]
    at, by = min(ends, default=(len(text), None))
    return (text[:at].strip() if strip else text[:at]), by


@pytest.mark.parametrize("strip", [True, False])
def test_random_texts_cuts_and_stops(strip):
    rng = random.Random(1)
    stopped = 0
    for _ in range(10_000):
        text = "".join(rng.choices("ab \n", k=rng.randrange(30)))
        stops = [
            "".join(rng.choices("ab \n", k=rng.randint(1, 5))) for _ in range(rng.randrange(4))
        ]
        channel, sent, at = ChannelText(stops, strip=strip), [], 0
        while at < len(text) and channel.stopped_by is None:
            size = rng.randint(1, 7)
            sent.append(channel.add(text[at : at + size]))
            at += size
        sent.append(channel.flush())
        whole, by = expected(text[:at], stops, strip)
        # one that ends at the end of a piece may be found before an earlier, longer one is complete
        assert "".join(sent) == whole and channel.stopped_by == by
        stopped += by is not None
        assert channel.add("more") == "" or by is None
    assert stopped > 1000


def test_only_what_may_begin_a_stop_is_held_back():
    channel = ChannelText(["</function", "STOP"])
    assert channel.add("The </fun") == "The"
    assert channel.add("ny S") == " </funny"
    assert channel.add("T") == ""
    assert channel.add("OPPED") == ""
    assert channel.stopped_by == "STOP" and channel.flush() == ""


def test_blanks_wait_for_a_successor():
    channel = ChannelText()
    assert [channel.add(t) for t in (" \n", "a ", "\n", "b", "\n\n")] == ["", "a", "", " \nb", ""]
    assert channel.flush() == ""
