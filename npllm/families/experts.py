"""Experts: several feedforward networks in a block, of which each token passes through a few (mixture of experts, MoE).

A router, a linear layer, gives each token a score for each expert. The token's best experts are run, and their outputs
summed, weighted by shares that follow from the scores. Each expert's matrices are weights of their own, so only those
of the chosen experts are read.

Source: Shazeer et al. 2017, "Outrageously large neural networks"; Fedus et al. 2021, "Switch transformers"; Jiang et
al. 2024, "Mixtral of experts"; https://huggingface.co/docs/transformers/experts_interface
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from ..arrays import Array, Float, Int, Weight, array_namespace
from ..block import block
from ..config import Config
from ..feedforward import feedforward
from ..linear import linear
from ..sampling import softmax
from ..tap import Tap, untapped
from ..text.brief import brief
from . import llama
from .family import Rows, Tapped, Work
from .keys import Keys
from .work import linear_work

MOST_IN_ALL_LAYERS = 2**16  # experts; existing models have up to 25,000


class ExpertWeights(NamedTuple):
    """The weights of one expert, named as those of a block's only network."""

    gate_up_proj: Weight  # [2F, D]
    down_proj: Weight  # [D, F]
    gate_up_proj_bias: Float[Array, " 2F"] | None = None
    down_proj_bias: Float[Array, " D"] | None = None

    def __repr__(self) -> str:
        return brief(self)


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig(Config):
    """A configuration with experts; `intermediate_size` is the width of one of them."""

    num_experts: int  # of a block
    num_experts_per_tok: int
    norm_topk_prob: bool = True  # whether the shares of a token's experts sum to 1


def read_experts(keys: Keys, layers: int, names: Sequence[str], experts: int, chosen: int) -> dict[str, Any]:
    """The number of experts in a block, and of those that run for each token.

    names : the keys that may give the number of experts
    experts, chosen : the defaults for a file without these keys
    """
    given = [name for name in names if keys.has(name)] or [names[0]]
    name, count = given[0], keys.integer(given[0], experts)
    if any(keys.integer(other) != count for other in given[1:]):
        raise keys.refusal(given[1], f"the number of experts in {name}, {count}")
    if count * layers > MOST_IN_ALL_LAYERS:
        raise keys.refusal(name, f"at most {MOST_IN_ALL_LAYERS} experts in all layers", got=count)
    active = keys.integer("num_experts_per_tok", chosen)
    if active > count:
        raise keys.refusal("num_experts_per_tok", f"at most the number of experts, {count}", got=active)
    keys.mark_read(*names)
    return {"num_experts": count, "num_experts_per_tok": active}


def route(
    x: Float[Array, "... T D"], weights: Any, config: ExpertsConfig, *, tap: Tap = untapped
) -> tuple[Int[Array, "... T A"], Float[Array, "... T A"]]:
    """The experts of each token, the best first, and their shares: their probabilities in the softmax over all experts.

    With `norm_topk_prob` these are divided by their sum. Without it the shares of a token sum to less than 1.
    """
    xp = array_namespace(x)
    logits = tap("router_logits", linear(x, weights.router))
    probabilities = softmax(logits)
    chosen = xp.argsort(-probabilities, axis=-1, stable=True)[..., : config.num_experts_per_tok]
    chosen = tap("chosen", chosen)
    shares = xp.take_along_axis(probabilities, chosen, axis=-1)
    if config.norm_topk_prob:
        shares = shares / xp.sum(shares, axis=-1, keepdims=True)
    return chosen, tap("shares", shares)


def mixture(
    x: Float[Array, "... T D"],
    chosen: Int[Array, "... T A"],
    shares: Float[Array, "... T A"],
    experts: Sequence[ExpertWeights],
    *,
    feedforward: Callable[..., Float[Array, "T D"]] = feedforward,
) -> Float[Array, "... T D"]:
    """The sum of the outputs of each token's experts, weighted by the shares.

    Each chosen expert runs once, on all of its tokens together. The weights of the others are not read.

    feedforward : (tokens, weights of an expert) -> its outputs
    """
    xp = array_namespace(x)
    x2d, active = xp.reshape(x, (-1, x.shape[-1])), chosen.shape[-1]
    flat = xp.reshape(chosen, (-1,))
    by_expert = xp.argsort(flat, stable=True)  # the tokens of the first expert, those of the second, ...
    inputs = xp.take(x2d, by_expert // active, axis=0)
    outputs, first = [], 0
    found = xp.unique_counts(flat)
    for expert, count in sorted(zip(map(int, found.values), map(int, found.counts), strict=True)):
        last = first + count
        outputs.append(feedforward(inputs[first:last, :], experts[expert]))
        first = last
    back = xp.argsort(by_expert, stable=True)  # to the order of the tokens
    of_tokens = xp.reshape(xp.take(xp.concat(outputs), back, axis=0), (*chosen.shape, x.shape[-1]))
    return xp.sum(shares[..., None] * of_tokens, axis=-2)


def mixture_of_experts(
    x: Float[Array, "... T D"],
    weights: Any,
    config: ExpertsConfig,
    *,
    route: Callable[..., tuple[Int[Array, "... T A"], Float[Array, "... T A"]]] = route,
    feedforward: Callable[..., Float[Array, "T D"]] = feedforward,
    tap: Tap = untapped,
) -> Float[Array, "... T D"]:
    """The network of a block with experts: `route`, then `mixture`. `weights` has `router` and `experts`."""
    chosen, shares = route(x, weights, config, tap=tap)
    return tap("output", mixture(x, chosen, shares, weights.experts, feedforward=feedforward))


def block_with_experts(
    x: Float[Array, "... T D"],
    weights: Any,
    config: ExpertsConfig,
    *args: Any,
    feedforward: Callable[..., Float[Array, "... T D"]] = mixture_of_experts,
    **options: Any,
) -> Float[Array, "... T D"]:
    """The pre-norm block with experts. Parameters as in `npllm.block.block`; `feedforward` gets config, too."""
    return block(x, weights, config, *args, feedforward=partial(feedforward, config=config), **options)


def expert_shapes(config: ExpertsConfig) -> dict[str, Rows]:
    """The rows of each tensor that a weight may be split into, and its columns: of the router and of one expert."""
    D, F = config.hidden_size, config.intermediate_size
    return {
        "router": ([config.num_experts], D),
        "experts.gate_up_proj": ([F, F], D),
        "experts.down_proj": ([D], F),
    }


def expert_structure(config: ExpertsConfig) -> list[tuple[str, str]]:
    """The lines of the router and the experts for `npllm show`. The numbers are those of all experts together."""
    return [
        (f"(mlp): MixtureOfExperts({config.num_experts_per_tok} of {config.num_experts})", ""),
        ("  (router): Linear", "router"),
        (f"  (experts): {config.num_experts} x SwiGLU", ""),
        ("    (gate_up_proj): Linear", "experts.gate_up_proj"),
        ("    (activation_fn): SiLU()", ""),
        ("    (down_proj): Linear", "experts.down_proj"),
    ]


def expert_work(config: ExpertsConfig, weights: Any, T: int) -> list[Work]:
    """What the router and the experts cost. Of the experts' weights at most those that T tokens can choose are read."""
    E, A, D = config.num_experts, config.num_experts_per_tok, config.hidden_size
    runs, read = T * A, min(E, T * A)
    up, down = (
        linear_work(name, weights.experts[0], runs)._replace(
            weights=[f"experts.{name}", f"experts.{name}_bias"], experts=read
        )
        for name in ("gate_up_proj", "down_proj")
    )
    renormalized = T * (2 * A - 1) if config.norm_topk_prob else 0
    return [
        linear_work("router", weights, T),
        Work("shares", T * (4 * E - 1) + renormalized),
        up,
        Work("SwiGLU", 4 * runs * config.intermediate_size),
        down,
        Work("sum of experts", T * (2 * A - 1) * D),
    ]


# Keys of training and of what a model returns. Here the jitter is noise of training; in phimoe.py it is not.
HARMLESS = ("output_router_logits", "router_aux_loss_coef", "router_jitter_noise")
INSIDE = tuple(f"feedforward.{leaf}" for leaf in ("gate", "up", "activation"))  # of a network
PARTS = {name: part for name, part in llama.PARTS.items() if name not in INSIDE} | {
    "feedforward.router_logits": Tapped("a score for each expert", "T E", linear, "", "3-13"),
    "feedforward.chosen": Tapped("the token's experts, the best first", "T A", route, 'tap("chosen"', "3-13"),
    "feedforward.shares": Tapped("how much each of them counts", "T A", route, 'tap("shares"', "3-13"),
    "feedforward.output": Tapped("the experts' outputs, weighted and summed", "T D", mixture, "    return", "3-13"),
}
# transformers' router is a module with three outputs; [0] is the first.
TRACED = {name: path for name, path in llama.TRACED.items() if not name.endswith(INSIDE)} | {
    "layers.*.feedforward.router_logits": "model.layers.*.mlp.gate[0]",
    "layers.*.feedforward.shares": "model.layers.*.mlp.gate[1]",
    "layers.*.feedforward.chosen": "model.layers.*.mlp.gate[2]",
}
