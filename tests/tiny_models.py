"""Small models for tests: with transformers as the oracle, biases and norms randomised.

Hugging Face initialises norms to 1 and biases to 0, which blinds a test to both.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import torch
import transformers

from convert.weights import load_params, open_weights
from jaxs1.model import transformer
from jaxs1.model.config import ComputeConfig, MeshConfig
from jaxs1.model.sharding import make_sharding_rules

#: name -> (model type, query heads, kv heads, head width, tied); 14/2 are the head counts of the
#: 0.5B, 10/2 those of the 32B (40/8) scaled down.
KINDS = {
    "qwen2-tied-14-2": ("qwen2", 14, 2, 8, True),
    "qwen2-untied-10-2": ("qwen2", 10, 2, 8, False),
    "qwen2-untied-4-4": ("qwen2", 4, 4, 16, False),
    "qwen3-tied-8-2": ("qwen3", 8, 2, 16, True),
    "qwen3-untied-6-3": ("qwen3", 6, 3, 16, False),
    "llama-tied-9-3": ("llama", 9, 3, 16, True),
    "mistral-untied-8-2": ("mistral", 8, 2, 16, False),
    "qwen3_moe-untied-8-2": ("qwen3_moe", 8, 2, 16, False),
}
#: Experts of the model types that have any.
EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
}
FLOAT32 = ComputeConfig(dtype="float32", remat="none", attention="xla")


def hf_model(kind, *, vocab=96, width=None, layers=3, seed=0, **more):
    """A transformers model with random weights, biases and norms, in float32."""
    model_type, heads, kv_heads, head_dim, tied = KINDS[kind]
    more = (EXPERTS if model_type == "qwen3_moe" else {}) | more
    config = transformers.AutoConfig.for_model(
        model_type,
        vocab_size=vocab,
        hidden_size=width or heads * head_dim,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        use_sliding_window=False,
        sliding_window=None,
        **more,
    )
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=0.3 if "bias" in name else parameter.shape[-1] ** -0.5)
    return model.float().eval()


@functools.cache
def one_device():
    """A mesh of the first device only."""
    return make_sharding_rules(MeshConfig(), jax.devices()[:1])


def ours(model, folder: Path, *, compute=FLOAT32, rules=None, **options):
    """Our model with the weights of a transformers model, through a folder on disk."""
    model.save_pretrained(folder)
    weights = open_weights(str(folder))
    shape = transformer.abstract(weights.architecture, compute, rules or one_device(), **options)
    return transformer.with_parameters(shape, load_params(weights, shape, jnp.dtype(jnp.float32)))
