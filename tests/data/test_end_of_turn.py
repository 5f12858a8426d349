"""The end of an assistant's turn is found in the template, whatever the family calls it."""

import json

import pytest

from jaxs1.data.end_of_turn import end_of_turn
from jaxs1.data.tokenizer import load_tokenizer, train_tokenizer
from tests.chain_models import TEMPLATES, write_tokenizer

TAIL = "{% for m in messages %}{{ m.role + ': ' + m.content + '@' }}{% endfor %}"


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("base", [True, False])
def test_families(family, base, tmp_path):
    write_tokenizer(family, tmp_path, base=base)
    tokenizer = load_tokenizer(str(tmp_path))
    ends = {"r1": "<｜end▁of▁sentence｜>"}.get(family, "<|im_end|>")
    assert tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer)) == ends


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (TAIL.replace("@", "\\n<|im_end|>\\n"), "<|im_end|>"),
        (TAIL.replace("@", "<|endoftext|>"), "<|endoftext|>"),
        (TAIL.replace("@", "<|endoftext|><|im_end|>"), "<|endoftext|>"),
        (TAIL.replace("@", "\\n"), None),
        (TAIL.replace("@", ""), None),
        ("{{ '<|im_end|>' }}", None),
        ("{{ raise_exception('no') }}", None),
        ("{% for", None),
        (None, None),
    ],
)
def test_other_templates(template, end, tmp_path):
    train_tokenizer(["one two"], tmp_path, vocabulary=300)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["chat_template"] = template
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(str(tmp_path))
    found = end_of_turn(tokenizer)
    assert (None if found is None else tokenizer.convert_ids_to_tokens(found)) == end
