"""An export stops by itself in transformers' `generate`, where our own decoding stops."""

import json

import pytest
import torch
import transformers

import jaxs1
from convert.from_hf import from_hf
from convert.to_hf import to_hf
from jaxs1.config import parse
from jaxs1.train import train
from jaxs1.training.config import TrainConfig
from tests.chain_models import write_chain, write_tokenizer

pytestmark = pytest.mark.slow

#: family -> model type, preset, text behind the prompt and the start of thinking, its last token.
FAMILIES = {
    "qwen2.5": ("qwen2", "s1", " one<|im_start|>answer two<|im_end|>", "think"),
    "qwen3": ("qwen3", "think_tags", " one</think>\n\n two<|im_end|>", "\n"),
    "r1": ("qwen2", "think_tags", " one</think>\n\n two<｜end▁of▁sentence｜>", "\n"),
}
QUESTION = [{"role": "user", "content": "one"}]
LIMIT = 20


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def chain(family, folder, *, base=False, **config):
    """Write a chain model with a family's tokenizer."""
    model_type, _, text, last = FAMILIES[family]
    write_tokenizer(family, folder, base=base)
    write_chain(folder, text, last=last, model_type=model_type, **config)


def ids_of(folder, text):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def our_tokens(family, folder):
    """Prompt with the start of thinking, and what our decoding writes behind it."""
    thinking = jaxs1.ThinkingParams(preset=FAMILIES[family][1], max_answer_tokens=LIMIT - 8)
    limits = jaxs1.Limits(max_num_seqs=1, max_seq_len=128, decode_steps=4)
    llm = jaxs1.LLM(folder, dtype="float32", impl="xla", limits=limits)
    done = llm.chat(QUESTION, thinking=thinking)
    return done.prompt_ids, done.tokens


def their_tokens(folder, prompt):
    """What transformers' generate writes behind a prompt, with the folder's own settings."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    with torch.no_grad():
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=LIMIT,
        )
    return out[0, len(prompt) :].tolist()


def declared(folder):
    """`eos_token_id` of both files, as sets."""
    files = (folder / "config.json", folder / "generation_config.json")
    values = [json.loads(file.read_text()).get("eos_token_id") for file in files]
    return [set(v if isinstance(v, list) else [v]) for v in values]


def train_one_step(folder, run, rows, *more):
    """One step that moves no weight by more than a rounding."""
    run.parent.mkdir(exist_ok=True)
    data = run.parent / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows * 8))
    settings = {
        "model": folder,
        "output": run,
        "steps": 1,
        "batch_size": 8,
        "data.path": data,
        "data.block_size": 128,
        "data.row_multiple": 128,
        "data.rows": 8,
        "optimizer.learning_rate": 1e-12,
        "optimizer.weight_decay": 0,
        "compute.dtype": "float32",
        "compute.param_dtype": "float32",
        "export_dtype": "float32",
        "log.tensorboard": "false",
    }
    words = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
    assert train(parse(TrainConfig, [*words, *more], command="test")) == 0


S1K = {"question": "one", "thinking_trajectories": [" one"], "attempt": "two"}
CHAT = {"messages": [*QUESTION, {"role": "assistant", "content": "two"}]}


def test_a_converted_model_stops_where_ours_does(family, tmp_path):
    end = {"r1": 0}.get(family, 2)  # positions in SPECIAL_TOKENS
    chain(family, tmp_path / "src", eos_token_id=end)
    from_hf(tmp_path / "src", tmp_path / "orbax")
    to_hf(tmp_path / "orbax", tmp_path / "hf")
    prompt, ours = our_tokens(family, tmp_path / "hf")
    assert ours == ids_of(tmp_path / "src", FAMILIES[family][2])
    assert their_tokens(tmp_path / "hf", prompt) == ours
    assert declared(tmp_path / "hf") == declared(tmp_path / "src")


@pytest.mark.parametrize("row", [S1K, CHAT], ids=["s1k", "messages"])
@pytest.mark.parametrize("family", ["qwen2.5", "qwen3"])
def test_a_base_model_stops_at_the_end_of_a_turn_once_it_is_trained(family, row, tmp_path):
    base, run = tmp_path / "base", tmp_path / "runs/run"
    chain(family, base, base=True, eos_token_id=0)  # <|endoftext|>, as Qwen's base models
    train_one_step(base, run, [row])
    prompt, ours = our_tokens(family, run / "hf")
    assert ours == ids_of(base, FAMILIES[family][2])
    assert len(their_tokens(base, prompt)) == LIMIT  # untrained, it does not stop
    to_hf(run, tmp_path / "again", "float32")
    for folder in (run / "hf", tmp_path / "again"):
        assert their_tokens(folder, prompt) == ours
        assert declared(folder) == [{0, ours[-1]}] * 2


def test_an_r1_distill_stops_once_it_is_trained(tmp_path):
    """Its turns end with the tokenizer's EOS, which neither file declares here."""
    base, run = tmp_path / "base", tmp_path / "runs/run"
    chain("r1", base)
    train_one_step(base, run, [S1K])
    prompt, ours = our_tokens("r1", run / "hf")
    assert ours == ids_of(base, FAMILIES["r1"][2])
    assert len(their_tokens(base, prompt)) == LIMIT  # untrained, it does not stop
    assert their_tokens(run / "hf", prompt) == ours
    assert declared(run / "hf") == [{ours[-1]}] * 2


def test_merged_adapters_stop_too(tmp_path):
    base, run = tmp_path / "base", tmp_path / "runs/run"
    chain("qwen2.5", base, base=True)  # neither file has an eos_token_id
    train_one_step(base, run, [CHAT], "--lora.rank", "2")
    to_hf(run, tmp_path / "again", "float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True)["input_ids"]
    prompt += ids_of(base, "<|im_start|>think")
    for folder in (run / "hf", tmp_path / "again"):
        assert their_tokens(folder, prompt) == ids_of(base, FAMILIES["qwen2.5"][2])
        assert declared(folder) == [{0, 2}] * 2


def test_other_settings_of_generation_are_kept(tmp_path):
    base, run = tmp_path / "base", tmp_path / "runs/run"
    chain("qwen2.5", base)
    settings = {"eos_token_id": [1, 3], "temperature": 0.7, "top_k": 20, "do_sample": True}
    (base / "generation_config.json").write_text(json.dumps(settings))
    train_one_step(base, run, [CHAT])
    exported = json.loads((run / "hf/generation_config.json").read_text())
    assert exported == settings | {"eos_token_id": [2, 1, 3]}
    assert json.loads((run / "hf/config.json").read_text())["eos_token_id"] == [2, 1, 3]


def test_plain_text_ends_with_the_end_of_text(tmp_path):
    base, run = tmp_path / "base", tmp_path / "runs/run"
    chain("qwen2.5", base)
    train_one_step(base, run, [{"text": "so it is"}])
    assert declared(run / "hf") == [{0, 2}] * 2  # 2: the tokenizer's EOS ends our decoding
