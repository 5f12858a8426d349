"""Pieces of text add up to the text of all ids, and no id is decoded more than a few times."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models

from jaxs1.decoding.detokenizer import Detokenizer
from tests.decoding.engines import encode, tokenizer

TEXTS = [
    "a ü 42€",
    "  two spaces, 日本語, 😀😀 and 👩‍👩‍👧 end\n\n",
    "Wait, the answer is 42.\n<|im_start|>answer\nFinal Answer: é",
]


def pieces_of(detokenizer, ids, rng):
    """Texts of random chunks, and what is left at the end."""
    pieces, rest = [], list(ids)
    while rest:
        size = rng.choice([1, 1, 2, 3, 7, 32])
        pieces.append(detokenizer.add(rest[:size]))
        rest = rest[size:]
    return [*pieces, detokenizer.flush()]


class Sentencepiece:
    """Llama's decoder: spaces as ▁, the first one stripped, bytes for unknown characters."""

    def __init__(self):
        words = ["<s>", "▁Hello", "▁there", ",", "▁", "wor", "ld", "▁€", "</s>"]
        vocabulary = {w: i for i, w in enumerate(words + [f"<0x{i:02X}>" for i in range(256)])}
        inner = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<s>"))
        inner.add_special_tokens(["<s>", "</s>"])
        inner.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        )
        self.inner, self.words = inner, words

    def ids(self, *parts):
        """Known words as their ids, anything else as bytes."""
        found = []
        for part in parts:
            if part in self.words:
                found.append(self.words.index(part))
            else:
                found += [len(self.words) + byte for byte in part.encode()]
        return found

    def decode(self, ids, skip_special_tokens=False):
        return self.inner.decode(ids, skip_special_tokens=skip_special_tokens)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("skip", [False, True])
def test_pieces_of_byte_level_bpe(text, skip):
    ids = encode(text)
    whole = tokenizer().decode(ids, skip_special_tokens=skip)
    for seed in range(20):
        detokenizer = Detokenizer(tokenizer(), skip_special_tokens=skip)
        pieces = pieces_of(detokenizer, ids, random.Random(seed))
        assert "".join(pieces) == whole
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("skip", [False, True])
def test_pieces_of_sentencepiece(skip):
    llama = Sentencepiece()
    ids = llama.ids(
        "▁Hello", ",", "▁there", "€", "▁there", "▁", "▁", "😀é", "▁Hello", "</s>", "<s>", "▁there",
        "▁€", "wor", "ld", "日本", ",",
    )  # fmt: skip
    whole = llama.decode(ids, skip_special_tokens=skip)
    assert whole.startswith("Hello, there€ there  😀é Hello") and whole.endswith(" €world日本,")
    for seed in range(50):
        detokenizer = Detokenizer(llama, skip_special_tokens=skip)
        assert "".join(pieces_of(detokenizer, ids, random.Random(seed))) == whole


def test_random_ids():
    """Invalid characters among them: sampling from a random model gives such sequences."""
    for seed in range(100):
        rng = random.Random(seed)
        ids = [rng.randrange(len(tokenizer())) for _ in range(200)]
        detokenizer = Detokenizer(tokenizer())
        pieces = pieces_of(detokenizer, ids, rng)
        assert "".join(pieces) == tokenizer().decode(ids)


def test_an_incomplete_character_waits_for_its_rest_only():
    first, second, *_ = ids = encode("€")
    assert len(ids) > 1
    detokenizer = Detokenizer(tokenizer())
    assert detokenizer.add([*encode("ab"), first]) == "ab"
    assert detokenizer.add([*ids[1:], *encode("c")]) == "€c"
    # a lone continuation byte is no character, however long one waits
    assert detokenizer.add([second]) == ""
    assert detokenizer.add(encode("d")) == "\ufffdd"
    assert detokenizer.add([first]) == "" and detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


@pytest.mark.parametrize("size", [1, 32])
def test_work_is_linear(size):
    """Every id is decoded a few times, however long the sequence."""

    class Counting:
        decoded = 0

        def decode(self, ids, **options):
            self.decoded += len(ids)
            return tokenizer().decode(ids, **options)

    ids = encode("Wait, the answer is 42€ 😀. ") * 200
    counting = Counting()
    detokenizer = Detokenizer(counting)
    for start in range(0, len(ids), size):
        detokenizer.add(ids[start : start + size])
    assert len(ids) > 3000
    assert counting.decoded < 12 * len(ids)

    invalid = [encode("€")[0]] * 2000
    counting.decoded = 0
    for start in range(0, len(invalid), size):
        detokenizer.add(invalid[start : start + size])
    assert counting.decoded < 30 * len(invalid)
