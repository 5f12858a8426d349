"""Chain models, whose greedy text is known in advance, and small tokenizers of three families.

In a chain model, layers add nothing: the newest token alone determines the next one. Behind the end
of its text it repeats a filler forever, so only a stop can end it.
"""

import itertools
import json
from pathlib import Path

import torch
import transformers

from jaxs1.data.tokenizer import load_tokenizer, train_tokenizer

WIDTH = 64
FILLER = " on"
WORDS = (
    "think",
    "answer",
    " one",
    " two",
    FILLER,
    "<think>",
    "</think>",
    "assistant",
    "\n",
    "\n\n",
)
#: DeepSeek's names of special tokens.
R1_NAMES = {
    "<|endoftext|>": "<｜end▁of▁sentence｜>",
    "<|im_start|>": "<｜User｜>",
    "<|im_end|>": "<｜Assistant｜>",
}
TEMPLATES = {
    "qwen2.5": "{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\n"
    "You are helpful.<|im_end|>\n' }}{%- endif %}"
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}",
    # the last answer gets a think block, earlier ones lose theirs
    "qwen3": "{%- for m in messages %}{%- set c = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{%- set r = m.reasoning_content or m.content.removesuffix(c).split('</think>')[0] %}"
    "{%- set r = r.split('<think>')[-1].strip('\n') %}"
    "{{ '<|im_start|>' + m.role + '\n' }}{%- if m.role == 'assistant' and loop.last %}"
    "{{ '<think>\n' + r + '\n</think>\n\n' }}{%- endif %}"
    "{{ c + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}",
    "r1": "{%- for m in messages %}{%- if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{%- else %}{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + eos_token }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{%- endif %}",
}


def write_tokenizer(family: str, folder: Path, *, base: bool = False) -> None:
    """A small byte-level BPE with a family's special tokens and a template like its own.

    A `base` model's tokenizer has <|endoftext|> as its EOS, where the template ends turns with
    <|im_end|>.
    """
    train_tokenizer(["one two on", "so it is"], folder, vocabulary=320, words=WORDS)
    names = R1_NAMES if family == "r1" else {}
    content = (folder / "tokenizer.json").read_text()
    for old, new in names.items():
        content = content.replace(json.dumps(old), json.dumps(new))
    (folder / "tokenizer.json").write_text(content)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    end = "<|endoftext|>" if base or family == "r1" else "<|im_end|>"
    config |= {"eos_token": names.get(end, end), "pad_token": names.get("<|endoftext|>")}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(TEMPLATES[family])


def write_chain(folder: Path, text: str, *, last: str, model_type: str, **config) -> None:
    """Weights of a chain model for the tokenizer in `folder`: `text` follows the token `last`.

    All tokens of `text` must differ.
    """
    tokenizer = load_tokenizer(str(folder))
    chain = tokenizer(last + text + FILLER, add_special_tokens=False)["input_ids"]
    assert len(set(chain)) == len(chain) < WIDTH, tokenizer.convert_ids_to_tokens(chain)
    settings = transformers.AutoConfig.for_model(
        model_type,
        vocab_size=512,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        use_sliding_window=False,
        **config,
    )
    model = transformers.AutoModelForCausalLM.from_config(settings)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embedding, head = model.model.embed_tokens.weight.zero_(), model.lm_head.weight.zero_()
        embedding[:, -1] = 1  # every other token
        head[chain[-1], -1] = 10
        for i, (token, following) in enumerate(itertools.pairwise(chain)):
            embedding[token] = torch.eye(WIDTH)[i]
            head[following, i] = 10
    model.save_pretrained(folder)
    if "eos_token_id" not in config:
        (folder / "generation_config.json").unlink(missing_ok=True)
