"""Load a Hugging Face tokenizer, or train a small one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxs1.config import UserError, one_line
from jaxs1.data.model_settings import attach_settings

#: Never `<|endoftext|>` or `<|im_end|>`: a model must not learn to ignore its end tokens.
PAD_TOKEN = "<|fim_pad|>"
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", PAD_TOKEN)
#: Qwen2's: transformers uses it for every tokenizer of a qwen2 model, whatever its file says.
PRETOKENIZER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: Files that hold a vocabulary, of fast and of slow tokenizers; any of the groups suffices.
_VOCABULARIES = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("tokenizer.model",),
    ("spiece.model",),
    ("vocab.txt",),
)
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def load_tokenizer(name: str, model: Path | None = None) -> Any:
    """A tokenizer from a Hugging Face folder or hub id, with a folder's `model_settings`.

    Args:
        name: folder or hub id
        model: folder whose settings count; None: that of the tokenizer

    Raises:
        UserError: the folder has no tokenizer, or one that cannot be loaded or encodes nothing; the
            message contains the reason.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    if Path(name).is_dir():
        _require_files(Path(name))
    try:
        # transformers would ask on the terminal whether to run a repository's own code
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        encodes = bool(tokenizer("1 + 1", add_special_tokens=False)["input_ids"])
    except (KeyboardInterrupt, SystemExit):
        raise
    except (
        BaseException
    ) as error:  # transformers raises many kinds; a panic of Rust is no Exception
        reason = one_line(error)[:100]
        raise UserError(
            f"tokenizer={name}: cannot be loaded ({reason}); give a folder with tokenizer.json or "
            "a hub id"
        ) from None
    if not encodes:
        raise UserError(f"tokenizer={name}: encodes text to no token; copy its files again")
    attach_settings(tokenizer, model or (name if Path(name).is_dir() else None))
    return tokenizer


def _require_files(folder: Path) -> None:
    """Refuse a folder without a vocabulary: transformers would make an empty tokenizer of it."""
    if not any(all((folder / file).is_file() for file in files) for files in _VOCABULARIES):
        raise UserError(
            f"tokenizer={folder}: has no tokenizer files (tokenizer.json, or vocab.json and "
            "merges.txt); copy them from the original model, or set tokenizer to its folder or hub "
            "id"
        )


def vocabulary_size(tokenizer: Any) -> int:
    """The number of rows that an embedding needs: the largest id, plus 1."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def check_vocabulary(tokenizer: Any, name: str, size: int) -> None:
    """Raise `UserError` if ids of the tokenizer `name` are beyond the `size` of a vocabulary."""
    needed = vocabulary_size(tokenizer)
    if needed > size:
        raise UserError(
            f"tokenizer={name}: has {needed} tokens, more than the model's vocab_size={size}; use "
            "the model's own tokenizer"
        )


def padding_id(tokenizer: Any) -> int:
    """Token id for padding: `<|fim_pad|>`, or the tokenizer's own padding if it has none."""
    known = tokenizer.get_vocab()
    return known.get(PAD_TOKEN, tokenizer.pad_token_id or 0)


def train_tokenizer(
    texts: Iterable[str], folder: str | Path, vocabulary: int = 366, words: Sequence[str] = ()
) -> None:
    """Train a byte-level BPE and save it to a folder that loads as a `Qwen2Tokenizer`.

    The same texts give the same files.

    Args:
        texts: training texts
        folder: output folder
        vocabulary: maximum size of the vocabulary, including SPECIAL_TOKENS and 256 bytes; smaller
            if there is nothing left to merge
        words: additional tokens, each encoded as one token wherever it occurs
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
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
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    settings = Path(folder) / "tokenizer_config.json"
    config = json.loads(settings.read_text()) | {"tokenizer_class": "Qwen2Tokenizer"}
    settings.write_text(json.dumps(config, indent=2) + "\n")
