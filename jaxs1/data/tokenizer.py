"""Tokenizers: load one in Hugging Face form, or train a small one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxs1.config import UserError

#: Never `<|endoftext|>` or `<|im_end|>`: a model must not learn that its end means nothing.
PADDING = "<|fim_pad|>"
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_pad|>")
# Qwen2's regex but for {1,2}: with one token per digit the verdict `yes` is hardly learnt.
PRETOKENIZER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def load_tokenizer(name: str) -> Any:
    """A tokenizer from a Hugging Face folder or hub id.

    Raises:
        UserError: it cannot be loaded; the line says why.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # transformers raises many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"tokenizer={name}: cannot be loaded ({reason}); give a folder with tokenizer.json or "
            "a hub id"
        ) from None


def padding_id(tokenizer: Any) -> int:
    """The id that fills rows: `<|fim_pad|>`, or the tokenizer's own padding where it has none."""
    known = tokenizer.get_vocab()
    return known.get(PADDING, tokenizer.pad_token_id or 0)


def train_tokenizer(texts: Iterable[str], folder: str | Path, vocabulary: int = 366) -> None:
    """Train a byte-level BPE and save it as a folder for `AutoTokenizer.from_pretrained`.

    `vocabulary` is the most entries it may have, SPECIAL_TOKENS and 256 bytes included; training
    ends before that when nothing is left to merge. The same texts give the same files.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZER), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
