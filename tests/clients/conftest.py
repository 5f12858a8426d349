"""A real server on a model whose text is fixed, for clients of other projects (`make clients`).

Every prompt of a chat gets the thought "First" and the answer "42"; behind the beginning of a call
come the arguments `{"a": 1}`.
"""

import json
import os

import pytest

from jaxs1.data.tokenizer import load_tokenizer
from jaxs1.serving.tool_calls import CLOSE, OPEN
from tests.data.templates import folder_with
from tests.decoding.test_chain import write_chain
from tests.test_serve import running

#: Nothing is looked up elsewhere.
os.environ |= {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
}  # fmt: skip
ARGUMENTS = '", "arguments":'
PIECES = ("First", "42", OPEN, '\n{"name": "', "add", ARGUMENTS, ' {"a": 1}}\n', CLOSE)
CONTEXT = 24_576


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The model's folder."""
    tokenizer = load_tokenizer(folder_with("qwen3", *PIECES))
    ids = {text: tokenizer(text, add_special_tokens=False)["input_ids"]
           for text in ("\n", "</think>", "<|im_end|>", "<|endoftext|>", *PIECES)}  # fmt: skip
    answer = ("\n", "First", "</think>", "42", "<|im_end|>")
    call = (ARGUMENTS, ' {"a": 1}}\n', CLOSE, "<|endoftext|>")
    chain = [token for text in (*answer, *call) for token in ids[text]]
    eos = [*ids["<|im_end|>"], *ids["<|endoftext|>"]]
    path = tmp_path_factory.mktemp("clients") / "fixed"
    write_chain(path, "qwen3", chain, eos=eos, pieces=PIECES)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": CONTEXT}))
    return path


@pytest.fixture(scope="session")
def url(folder):
    """The address of its server."""
    limits = {"max_num_seqs": 4, "kv_cache_tokens": 3 * CONTEXT, "max_seq_len": CONTEXT,
              "prefill_chunk_tokens": 512}  # fmt: skip
    options = [text for k, v in limits.items() for text in (f"--limits.{k}", str(v))]
    with running(folder, "--warm_up", "off", *options) as server:
        server.wait_until_ready()
        yield server.url
