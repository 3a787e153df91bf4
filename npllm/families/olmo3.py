"""OLMo 3: OLMo 2 with a sliding window in three of four layers; positions are scaled only in the others.

A layer with a window never sees farther back than in training, so YaRN has nothing to do there: its RoPE is the plain
one, and may have another theta.

Source: OLMo Team 2025, "OLMo 3"; Peng et al. 2023, "YaRN"; https://huggingface.co/docs/transformers/model_doc/olmo3
"""

from functools import partial
from typing import Any

from . import common, llama, local_rope, olmo2
from .keys import Keys
from .local_rope import LocalRopeConfig
from .olmo2 import OLMO2

THETA = 500000.0  # where the file does not say
SCALINGS = {kind: kind for kind in ("linear", "llama3", "yarn")}


transform = partial(local_rope.transform, block=olmo2.block)


def read_config(keys: Keys) -> LocalRopeConfig:
    """OLMo 3's config.json. Without `layer_types` every fourth layer has full attention, the others the window."""
    keys.allow_only(llama.ALLOWED)
    sizes = common.sizes(keys)
    layers = sizes["num_hidden_layers"]
    window = keys.optional("sliding_window", absent=4096)
    fourth = ["full_attention" if (layer + 1) % 4 == 0 else "sliding_attention" for layer in range(layers)]
    kinds = common.layer_types(keys, layers, default=fourth, window=window)
    return LocalRopeConfig(
        family="olmo3",
        **sizes,
        **ropes(keys, sizes["head_dim"], kinds),
        **common.head(keys, pad_token_id=1),
        rms_norm_eps=keys.number("rms_norm_eps", 1e-5),
        sliding_window=window,
        layer_types=kinds,
        attention_bias=keys.boolean("attention_bias"),
    )


def ropes(keys: Keys, head_dim: int, kinds: tuple[str, ...]) -> dict[str, Any]:
    """The fields of RoPE for both kinds of layers.

    Newer files have an object for each kind in `rope_parameters`. In older ones `rope_scaling` holds in the layers with
    full attention. Where transformers would ignore a part of these keys, or its versions differ, they are refused.
    """
    older, newer = keys.object("rope_scaling"), keys.object("rope_parameters")
    keys.mark_read("original_max_position_embeddings")  # transformers reads it only inside the objects
    if not {*newer} <= {*common.KINDS} or not all(isinstance(one, dict | None) for one in newer.values()):
        raise keys.refusal("rope_parameters", f"an object for each of {' and '.join(common.KINDS)}")
    if older.get("type", "default") != "default" or any(isinstance(value, dict) for value in older.values()):
        raise keys.refusal("rope_scaling", "one object with a rope_type")
    theta, (full, sliding) = keys.number("rope_theta", THETA), (dict(newer.get(kind) or {}) for kind in common.KINDS)
    if theta != THETA and "rope_theta" not in sliding and "sliding_attention" in kinds:
        raise keys.refusal("rope_theta", f"{THETA}, or one for each kind of layer in rope_parameters", got=theta)
    where = "rope_scaling" if older else "rope_parameters"
    if (full | older).get("truncate", True) is not True:  # transformers looks for it beside the objects
        raise keys.refusal(f"{where}.truncate", "true", got=(full | older)["truncate"])
    shared = {key: keys.get(key) for key in ("max_position_embeddings", "partial_rotary_factor")}

    def rope(name: str, inside: dict[str, Any], theta: float, scalings: dict[str, str]) -> dict[str, Any]:
        return common.rope(Keys({name: inside} | shared, keys.where), head_dim, theta=theta, kinds=scalings)

    of_windows = rope("rope_parameters", sliding, THETA, {})
    return rope(where, full | older, theta, SCALINGS) | {"local_rope_theta": of_windows["rope_theta"]}


def structure(config: LocalRopeConfig, layer: int) -> list[tuple[str, str]]:
    """The lines of a block for `npllm show`."""
    return olmo2.structure(local_rope.local(config) if config.window(layer) else config, layer)


OLMO3 = OLMO2._replace(
    title="OLMo 3",
    model_types=["olmo3"],
    lm_class="Olmo3ForCausalLM",
    read_config=read_config,
    transform=transform,
    structure=structure,
)
