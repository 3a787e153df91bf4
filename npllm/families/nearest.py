"""Families that npllm does not compute: for each the one that is most like it, and what differs.

Only those that share most of a block with a family that npllm computes. Others get no neighbour: the cells of Mamba or
RWKV, latent attention (DeepSeek) or an encoder with a decoder (T5) are another architecture, whatever the names say.

Source: the models of transformers, https://github.com/huggingface/transformers/tree/main/src/transformers/models
"""

from collections.abc import Collection, Iterable

# By model_type: the nearest family's model_type, and how this one differs: what it has instead, or in addition.
NEAREST = {
    "phi": ("phi3", "attention and network in parallel after one LayerNorm, and a network without a gate"),
    "phi3_v": ("phi3", "an image encoder"),
    "phi4_multimodal": ("phi3", "encoders for images and sound, with LoRA adapters"),
    "stablelm": ("llama", "LayerNorm, and RoPE on a quarter of each head"),
    "arcee": ("llama", "a network without a gate, with ReLU²"),
    "nemotron": ("llama", "LayerNorm with weights 1 + w, RoPE on half of each head, and ReLU² without a gate"),
    "helium": ("llama", "interleaved RoPE"),
    "ernie4_5": ("llama", "interleaved RoPE"),
    "glm": ("llama", "interleaved RoPE on half of each head"),
    "glm4": ("llama", "interleaved RoPE on half of each head, and also norms after the layers"),
    "olmo": ("llama", "LayerNorm without weights, and a limit on queries, keys and values"),
    "cohere": ("llama", "LayerNorm, attention and network in parallel, interleaved RoPE, and scaled logits"),
    "cohere2": ("smollm3", "LayerNorm, attention and network in parallel, interleaved RoPE, and scaled logits"),
    "internlm2": ("llama", "queries, keys and values in one tensor, group by group"),
    "seed_oss": ("qwen2", "biases that the config can switch off"),
    "starcoder2": ("mistral", "LayerNorm, biases, and a network without a gate"),
    "ministral3": ("ministral", "queries scaled by position"),
    "mistral3": ("mistral", "an image encoder"),
    "qwen2_vl": ("qwen2", "an image encoder, and RoPE with three positions per token"),
    "qwen2_5_vl": ("qwen2", "an image encoder, and RoPE with three positions per token"),
    "qwen3_vl": ("qwen3", "an image encoder, and RoPE with three positions per token"),
    "qwen2_moe": ("qwen3_moe", "biases in place of QK-norm, and an expert that all tokens share"),
    "hunyuan_v1_dense": ("qwen3", "QK-norm after RoPE, not before it"),
    "apertus": ("qwen3", "a network without a gate, with xIELU"),
    "exaone4": ("olmo3", "QK-norm by head, and no RoPE in the layers with full attention"),
    "dbrx": ("mixtral", "LayerNorm, and a limit on queries, keys and values"),
    "minicpm": ("granite", "other names for the multipliers"),
    "granitemoe": ("granite", "a mixture of experts"),
    "gemma3n": ("gemma3_text", "several residual streams, embeddings for each layer, and sparse activations"),
    "gpt_bigcode": ("gpt2", "one key head and one value head for all queries"),
    "gpt_neo": ("gpt2", "unscaled scores, and a window in every second layer"),
    "gpt_neox": ("gpt2", "RoPE in place of position embeddings, and attention and network in parallel"),
    "gptj": ("gpt2", "RoPE in place of position embeddings, and attention and network in parallel after one LayerNorm"),
    "opt": ("gpt2", "ReLU, and positions that begin at 2"),
    "bloom": ("gpt2", "ALiBi in place of position embeddings, and a norm after the embeddings"),
    "mpt": ("gpt2", "ALiBi in place of position embeddings, and no biases"),
    "roberta": ("bert", "positions that begin at 2, and no token types"),
    "distilbert": ("bert", "no token types"),
}
# llama.cpp's names of architectures, where they are not a model_type without its underscores.
LLAMA_CPP = {"phi2": "phi", "command-r": "cohere", "starcoder": "gpt_bigcode", "qwen2vl": "qwen2_vl"}


def compact(name: str) -> str:
    """A name without capitals and the marks in which llama.cpp's architectures differ: gpt_oss is gpt-oss."""
    return name.lower().replace("_", "").replace("-", "")


def meant(name: str, known: Iterable[str]) -> str:
    """The known name that differs only in case or such a mark; "" if there is none.

    >>> meant("GPT-OSS", ["gpt2", "gpt_oss"])
    'gpt_oss'
    """
    return next((other for other in known if compact(other) == compact(name)), "")


def nearest(name: str, computed: Collection[str]) -> str:
    """What to say of an architecture that npllm does not compute; "" where none that it computes is near.

    name : a model_type, or a .gguf file's architecture
    computed : the model_types to choose from
    """
    types = {compact(other): other for other in NEAREST}
    model_type = LLAMA_CPP.get(name) or types.get(compact(name), "")
    family, difference = NEAREST.get(model_type, ("", ""))
    return f"the nearest family is {family}, but {name} has {difference}" if family in computed else ""
