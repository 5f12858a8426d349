"""Incremental detokenization: the text of a growing sequence, a piece at a time, in linear time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

#: What a tokenizer decodes an incomplete or invalid character to.
REPLACEMENT = "\ufffd"
#: A character has at most four bytes, so at most three tokens of an incomplete one.
MAX_INCOMPLETE = 3


def decoder_of(tokenizer: Any) -> Callable[..., str]:
    """`tokenizer.decode` for lists of ids, without what transformers does around it.

    It looks at each id four times to see whether it is an array, which takes longer than the text.
    """
    from transformers import PreTrainedTokenizerFast as Fast

    kind: Any = type(tokenizer)
    is_plain = (
        isinstance(tokenizer, Fast)
        and (kind.decode, kind._decode) == (Fast.decode, Fast._decode)
        and not tokenizer.clean_up_tokenization_spaces
    )
    if not is_plain:
        return tokenizer.decode
    decode = tokenizer.backend_tokenizer.decode

    def plain(ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return decode(ids, skip_special_tokens=skip_special_tokens)

    return plain


class Detokenizer:
    """The text of one sequence; all pieces together equal `tokenizer.decode` of all ids.

    The text of an id depends on its predecessors: sentencepiece strips the first space of a text,
    and the bytes of one character can be spread over several ids. So new ids are decoded together
    with those of the previous piece, and that piece is cut off, as in vLLM. Ids of an incomplete
    character at the end are held back.

    Args:
        tokenizer: tokenizer of the model
        skip_special_tokens: leave special tokens out of the text
    """

    def __init__(self, tokenizer: Any, *, skip_special_tokens: bool = False):
        self._decoder, self._skip = decoder_of(tokenizer), skip_special_tokens
        # ids of the previous piece, then ids that are not in any piece yet
        self._ids: list[int] = []
        self._num_read = 0

    def add(self, ids: Sequence[int]) -> str:
        """Append ids; returns the new text, without an incomplete character at its end."""
        self._ids += ids
        text = self._decode(self._ids)
        if not text.endswith(REPLACEMENT):
            return self._take(text, len(self._ids))
        ends = range(len(self._ids) - 1, len(self._ids) - 1 - MAX_INCOMPLETE, -1)
        shorter = {end: self._decode(self._ids[:end]) for end in ends if end >= self._num_read}
        for end, before in shorter.items():
            if not before.endswith(REPLACEMENT):
                return self._take(before, end)
        for end, before in shorter.items():  # invalid bytes, then perhaps an incomplete character
            if before + REPLACEMENT == text:
                return self._take(before, end)
        return self.flush()

    def flush(self) -> str:
        """The text held back, whatever it is; more ids may follow."""
        return self._take(self._decode(self._ids), len(self._ids))

    def _take(self, text: str, end: int) -> str:
        piece = text[len(self._decode(self._ids[: self._num_read])) :]
        if piece:  # or the next one would begin at the start of a text
            del self._ids[: self._num_read]
            end -= self._num_read
        self._num_read = end
        return piece

    def _decode(self, ids: Sequence[int]) -> str:
        if not ids:
            return ""
        return self._decoder(ids, skip_special_tokens=self._skip)
