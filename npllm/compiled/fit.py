"""Which passes the compiled loops compute, and what is special about each.

As in cuda/fit.py, passes are listed by identity and weights by field: a weight that the loops do not know would be
ignored silently. All other models run the pass of their family, with its products in loops.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from .. import model
from ..arrays import Array
from ..cache import Cache
from ..config import Config
from ..embedding import embed
from ..families import gemma, gemma2, gemma3, local_rope, qwen3
from ..families.gemma import GemmaConfig
from ..lm import LM
from ..norm import rms_norm

# The fields of a block's weights that are norms, by their places in a block.
LLAMA = {"before_attention": "input_layernorm", "before_feedforward": "post_attention_layernorm"}
OF_HEADS = {"of_queries": "q_norm", "of_keys": "k_norm"}
SANDWICH = {
    "before_attention": "input_layernorm",
    "after_attention": "post_attention_layernorm",
    "before_feedforward": "pre_feedforward_layernorm",
    "after_feedforward": "post_feedforward_layernorm",
}
MATRICES = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
OUTSIDE = ("embed_tokens", "layers", "norm", "lm_head", "score", "score_bias")  # weights that the pass or a head reads


def usual_scale(config: Config) -> float:
    """1 / sqrt(H), which multiplies the scores."""
    return config.head_dim**-0.5


def scale_of_gemma(config: GemmaConfig) -> float:
    """The scale of Gemma 2 and 3, which does not depend on the width of a head."""
    return config.query_pre_attn_scalar**-0.5


def no_cap(config: Config) -> float:
    """0: the scores are not capped."""
    return 0.0


def cap_of_gemma2(config: GemmaConfig) -> float:
    """The cap of the scores."""
    return config.attn_logit_softcapping or 0.0


class Recipe(NamedTuple):
    """What distinguishes a pass from others with the same steps."""

    norms: dict[str, str]  # the place of each norm -> its field
    embed: Callable[..., Array] = embed
    norm: Callable[..., Array] = rms_norm  # the final one
    plus_one: bool = False  # whether norms multiply by 1 + w
    gelu: bool = False  # whether the gate is GELU
    local: Callable[[Any], Config] | None = None  # the configuration with the RoPE of layers with a window
    scale: Callable[[Any], float] = usual_scale  # of the scores
    cap: Callable[[Any], float] = no_cap  # of the scores; 0: none


OF_GEMMA = Recipe(LLAMA, gemma.scaled_embed, gemma.norm, plus_one=True, gelu=True)
OF_GEMMA2 = OF_GEMMA._replace(norms=SANDWICH, scale=scale_of_gemma, cap=cap_of_gemma2)
OF_GEMMA3 = OF_GEMMA2._replace(norms=SANDWICH | OF_HEADS, local=local_rope.local, cap=no_cap)
RECIPES: list[tuple[Callable[..., Any], Recipe]] = [
    (model.transform, Recipe(LLAMA)),  # Phi-3, Llama, Mistral, Qwen2
    (qwen3.transform, Recipe(LLAMA | OF_HEADS)),
    (gemma.transform, OF_GEMMA),
    (gemma2.transform, OF_GEMMA2),
    (gemma3.transform, OF_GEMMA3),
]


def recipe_for(lm: LM) -> Recipe | None:
    """The recipe of a model's pass; None if its steps are not in loops."""
    return next((recipe for transform, recipe in RECIPES if lm.transform is transform), None)


def unknown_weights(weights: Any, recipe: Recipe) -> list[str]:
    """The weights of a model that the loops would ignore."""
    known = {*MATRICES, *(f"{name}_bias" for name in MATRICES), *recipe.norms.values()}
    outside = [name for name in weights._fields if name not in OUTSIDE and getattr(weights, name) is not None]
    inside = {name for layer in weights.layers for name in layer._fields if getattr(layer, name) is not None}
    return outside + sorted(inside - known)


def other_shapes(weights: Any, config: Config, cache: Cache, recipe: Recipe) -> list[str]:
    """The weights and caches whose shapes differ from the config's. A loop would read or write beyond their ends.

    The arrays of a cache must also have the same dtype.
    """
    D, N, K, H = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
    F = config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "qkv_proj": ((N + 2 * K) * H, D),
        "o_proj": (D, N * H),
        "gate_up_proj": (2 * F, D),
        "down_proj": (D, F),
    }
    shapes |= {f"{name}_bias": shape[:1] for name, shape in shapes.items()}
    shapes |= {field: (H if field in OF_HEADS.values() else D,) for field in recipe.norms.values()}
    wrong = [
        f"layers.{i}.{name}"
        for i, layer in enumerate(weights.layers)
        for name, shape in shapes.items()
        if getattr(layer, name, None) is not None and tuple(getattr(layer, name).shape) != shape
    ]
    wrong += ["norm"] * (weights.norm.shape != (D,)) + ["embed_tokens"] * (weights.embed_tokens.shape[1] != D)
    *batch, _, C, _ = cache["keys"][0].shape
    dtype = cache["keys"][0].dtype
    sides = [(side, i, array) for side in ("keys", "values") for i, array in enumerate(cache[side])]
    return wrong + [
        f"{side}.{i}" for side, i, array in sides if (array.shape, array.dtype) != ((*batch, K, C, H), dtype)
    ]
