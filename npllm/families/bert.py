"""BERT: a masked language model, which fills gaps: bidirectional attention, norms after the layers.

The block is the original one of 2017 with GELU: each layer adds, then normalizes, so there is no norm after the last
block. A token's vector is the sum of three, of the token, its position and its segment (token type), normalized. The
head has a layer of its own before the embedding matrix, to which it is tied, and a bias for each token. A classifier
of texts reads the vector of the first token, [CLS], through a layer called the pooler; in training, it predicted
whether the second text follows the first.

The published files are of several generations: older files call the norms' weights and biases gamma and beta, and some
have copies of tied tensors.

Source: Devlin et al. 2018, "BERT: Pre-training of deep bidirectional transformers for language understanding";
https://huggingface.co/docs/transformers/model_doc/bert
"""

import re
from collections.abc import Callable, Sequence

from array_api_compat import device

from ..arrays import Array, Bool, Float, Int, array_namespace
from ..attention import attention
from ..block import original_block
from ..cache import Cache
from ..config import Config
from ..embedding import embed
from ..errors import UsageError
from ..norm import layer_norm
from ..shapes import GPT2BlockWeights
from ..tap import Tap, under, untapped
from . import common
from .activations import ACTIVATIONS, FLOPS
from .bert_heads import BertConfig, BertWeights, masked_lm_head, masked_part, pooled_head
from .family import Family, Rows, Tapped, Work
from .gpt2 import GPT2_PARTS, layer_norm_text
from .keys import Keys
from .llama import attention_text
from .work import attention_work, layer_norm_flops, linear_work


def bert_block(
    x: Float[Array, "... T D"],
    weights: GPT2BlockWeights,
    config: BertConfig,
    visible: Bool[Array, "... T S"] | None,
    cache: Cache | None = None,
    layer: int = 0,
    *,
    attention: Callable[..., Float[Array, "... N T H"]] = attention,
    tap: Tap = untapped,
) -> Float[Array, "... T D"]:
    """The original block with BERT's activation function. Parameters as in `npllm.block.block`."""
    activation = ACTIVATIONS[config.hidden_act]
    return original_block(x, weights, config, visible, None, layer, attention=attention, activation=activation, tap=tap)


def bert_transform(
    ids: Int[Array, "... T"],
    weights: BertWeights,
    config: BertConfig,
    cache: Cache | None = None,
    *,
    positions: Int[Array, "... T"] | None = None,
    token_types: Int[Array, "... T"] | None = None,
    visible: Bool[Array, "... T S"] | Sequence[Bool[Array, "... T S"] | None] | None = None,
    total_length: int | None = None,
    block: Callable[..., Float[Array, "... T D"]] = bert_block,
    attention: Callable[..., Float[Array, "... N T H"]] = attention,
    tap: Tap = untapped,
) -> tuple[Float[Array, "... T D"], None]:
    """The hidden states, one vector per token with its context on both sides in it.

    Parameters as in `npllm.model.transform`, except: by default every token sees all T tokens, so hide padding with
    `visible`. `total_length` has no effect. There is no cache: a later token changes the keys and values of all
    earlier ones.

    token_types : the segment of each token, 0 or 1, as the tokenizer gives them for a pair of texts; by default all 0

    The taps are "embedding", "token_type_embedding", "position_embedding", "residual_after_embedding" (their sum),
    "embedding_layernorm", and those of the blocks.
    """
    if cache is not None:
        raise UsageError("cache: expected None with BERT, where every token sees the later ones, too")
    xp = array_namespace(ids)
    if positions is None:
        positions = xp.arange(ids.shape[-1], device=device(ids))
    if token_types is None:
        token_types = xp.zeros_like(ids)
    masks = visible if isinstance(visible, Sequence) else [visible] * config.num_hidden_layers

    x = tap("embedding", embed(ids, weights.embed_tokens))
    x = x + tap("token_type_embedding", embed(token_types, weights.embed_token_types))
    x = x + tap("position_embedding", embed(positions, weights.embed_positions))
    x = tap("residual_after_embedding", x)
    x = tap("embedding_layernorm", layer_norm(x, weights.norm, weights.norm_bias, config.layer_norm_epsilon))
    for layer, block_weights in enumerate(weights.layers):
        inside = under(tap, f"layers.{layer}")
        x = block(x, block_weights, config, masks[layer], None, layer, attention=attention, tap=inside)
    return x, None


def final_norm(x: Float[Array, "... T D"], weights: BertWeights, config: Config) -> Float[Array, "... T D"]:
    """x: the last block has already normalized it."""
    return x


BLOCK = "bert.encoder.layer.*"
NAMES = {
    "embed_tokens": "bert.embeddings.word_embeddings",
    "embed_positions": "bert.embeddings.position_embeddings",
    "embed_token_types": "bert.embeddings.token_type_embeddings",
    "norm": "bert.embeddings.LayerNorm",
    "qkv_proj": " ".join(f"{BLOCK}.attention.self.{name}" for name in ("query", "key", "value")),
    "o_proj": f"{BLOCK}.attention.output.dense",
    "ln_1": f"{BLOCK}.attention.output.LayerNorm",
    "c_fc": f"{BLOCK}.intermediate.dense",
    "c_proj": f"{BLOCK}.output.dense",
    "ln_2": f"{BLOCK}.output.LayerNorm",
    "head_dense": "cls.predictions.transform.dense",
    "head_norm": "cls.predictions.transform.LayerNorm",
    "lm_head": "cls.predictions.decoder",
    "lm_head_bias": "cls.predictions.decoder.bias | cls.predictions.bias",  # the first, if they differ
    "pooler": "bert.pooler.dense",
    "score": "classifier",
}
# Of another head, of a head that npllm has no use for, or a copy.
NOT_NEEDED = tuple(
    f"{name}.{kind}" for name in (".pooler.dense", "cls.seq_relationship") for kind in ("weight", "bias")
)
NOT_NEEDED += ("embeddings.position_ids", "embeddings.token_type_ids", "cls.predictions.bias")
ALLOWED = common.ALLOWED | {"is_causal": (False, None), "is_decoder": (False,)}
ALLOWED |= {"position_embedding_type": ("absolute",)}
OTHER_FAMILIES = ("num_key_value_heads", "head_dim", "attention_bias", "mlp_bias", "use_sliding_window")
DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")


def renamed(name: str) -> str:
    """The name of a tensor as newer files have it: the first ones were converted from TensorFlow.

    >>> renamed("bert.embeddings.LayerNorm.gamma")
    'bert.embeddings.LayerNorm.weight'
    """
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))


def read_config(keys: Keys) -> BertConfig:
    """BERT's config.json."""
    keys.allow_only(ALLOWED)
    layers, heads, hidden = (keys.integer(name) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
    if hidden % heads:
        raise keys.refusal("hidden_size", f"a multiple of num_attention_heads, {heads}")
    common.refuse_window(keys, keys.integer("max_position_embeddings"))
    return BertConfig(
        family="bert",
        vocab_size=keys.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=keys.integer("intermediate_size"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden // heads,
        max_position_embeddings=keys.integer("max_position_embeddings"),
        **common.head(keys, tied=True),
        layer_norm_epsilon=keys.number("layer_norm_eps", 1e-12),
        layer_types=common.all_full(layers),
        attention_bias=True,
        mlp_bias=True,
        bidirectional=True,
        hidden_act=keys.choice("hidden_act", ACTIVATIONS, "gelu"),
        type_vocab_size=keys.integer("type_vocab_size", default=2),
    )


def shapes(config: BertConfig) -> dict[str, Rows]:
    """The rows of each tensor that a weight may be split into, and the columns."""
    D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    masked: dict[str, Rows] = {"head_dense": ([D], D), "head_norm": ([D], None)}
    masked |= {"lm_head": ([V], D), "lm_head_bias": ([V], None)}
    pooler: dict[str, Rows] = {"pooler": ([D], D)} if reads_first_token(config) else {}
    return {
        "embed_tokens": ([V], D),
        "embed_positions": ([config.max_position_embeddings], D),
        "embed_token_types": ([config.type_vocab_size], D),
        "norm": ([D], None),
        "qkv_proj": ([D, D, D], D),
        "o_proj": ([D], D),
        "ln_1": ([D], None),
        "c_fc": ([F], D),
        "c_proj": ([D], F),
        "ln_2": ([D], None),
        **(pooler | {"score": ([len(config.id2label)], D)} if config.id2label else masked),
    }


def reads_first_token(config: Config) -> bool:
    """Whether the head is a classifier of texts; one of tokens has no pooler."""
    return any(name.endswith("ForSequenceClassification") for name in config.architectures)


def biases(config: BertConfig) -> set[str]:
    """The weights with a bias: all but the three embedding matrices and the head's own, which is separate."""
    return shapes(config).keys() - {"embed_tokens", "embed_positions", "embed_token_types", "lm_head", "lm_head_bias"}


def structure(config: BertConfig, layer: int) -> list[tuple[str, str]]:
    """The lines of a block for `npllm show`: a text, and the weight it describes."""
    return [
        (f"(self_attn): {attention_text(config, layer)}", ""),
        ("  (qkv_proj): Linear", "qkv_proj"),
        ("  (o_proj): Linear", "o_proj"),
        (f"(ln_1): {layer_norm_text(config)}", "ln_1"),
        ("(mlp): MLP", ""),
        ("  (c_fc): Linear", "c_fc"),
        (f"  (activation_fn): {config.hidden_act}", ""),
        ("  (c_proj): Linear", "c_proj"),
        (f"(ln_2): {layer_norm_text(config)}", "ln_2"),
    ]


def work(config: BertConfig, layer: int, weights: GPT2BlockWeights, T: int, S: int) -> list[Work]:
    """The cost of each part of a block, in order of execution."""
    norm = layer_norm_flops(T, config.hidden_size)
    return [
        *attention_work(config, weights, T, S, rotated=False),
        Work("ln_1", norm, ["ln_1", "ln_1_bias"]),
        linear_work("c_fc", weights, T),
        Work(config.hidden_act, FLOPS[ACTIVATIONS[config.hidden_act]] * T * config.intermediate_size),
        linear_work("c_proj", weights, T),
        Work("ln_2", norm, ["ln_2", "ln_2_bias"]),
        Work("residual", 2 * T * config.hidden_size),
    ]


def outside_work(config: BertConfig, weights: BertWeights, T: int, scored: int) -> tuple[list[Work], list[Work]]:
    """The cost before the blocks, and after them."""
    D, tables = config.hidden_size, ("embed_tokens", "embed_token_types", "embed_positions")
    before = [Work("embedding", 2 * T * D, rows=tables), Work("norm", layer_norm_flops(T, D), ["norm", "norm_bias"])]
    if weights.lm_head is None:
        return before, []
    return before, [
        linear_work("head_dense", weights, scored),
        Work(f"head {config.hidden_act}", FLOPS[ACTIVATIONS[config.hidden_act]] * scored * D),
        Work("head_norm", layer_norm_flops(scored, D), ["head_norm", "head_norm_bias"]),
        linear_work("lm_head", weights, scored),
    ]


def norm_flops(config: Config, T: int) -> int:
    """0: there is no norm after the last block."""
    return 0


POSITIONS, TYPES = 'tap("position_embedding"', 'tap("token_type_embedding"'
OUTSIDE = ("norm", "input_layernorm")  # of GPT-2's values, those that BERT lacks
NORMED = Tapped("normalized: the residual stream from here on", "T D", layer_norm, "", "3-29")
PARTS = {name: part for name, part in GPT2_PARTS.items() if name not in OUTSIDE} | {
    "token_type_embedding": Tapped("its text's row of the table of token types", "T D", bert_transform, TYPES, "3-5"),
    "position_embedding": GPT2_PARTS["position_embedding"]._replace(function=bert_transform, line=POSITIONS),
    "residual_after_embedding": GPT2_PARTS["residual_after_embedding"]._replace(function=bert_transform),
    "embedding_layernorm": NORMED,
    "post_attention_layernorm": NORMED,
    "post_feedforward_layernorm": NORMED,
    **{
        name: GPT2_PARTS[name]._replace(function=original_block)
        for name in ("residual_after_attention", "residual_after_feedforward")
    },
    "logits": Tapped("a score for each token to stand at this position", "T V", masked_lm_head, "", "3-6"),
}
TRACED_BLOCK = {
    **{f"attention.{q}": f"attention.self.{name}" for q, name in zip("qkv", ("query", "key", "value"), strict=True)},
    "attention.output": "attention.output.dense",
    "residual_after_attention": "attention.output.LayerNorm",
    "post_attention_layernorm": "attention.output.LayerNorm",
    "feedforward.up": "intermediate.dense",
    "feedforward.activation": "output.dense",
    "feedforward.output": "output.dense",
    "residual_after_feedforward": "output.LayerNorm",
    "post_feedforward_layernorm": "output.LayerNorm",
}
INPUTS = ("residual_after_attention", "feedforward.activation", "residual_after_feedforward")
TRACED = {
    "embedding": "bert.embeddings.word_embeddings",
    "token_type_embedding": "bert.embeddings.token_type_embeddings",
    "position_embedding": "bert.embeddings.position_embeddings",
    "residual_after_embedding": ">bert.embeddings.LayerNorm",
    "embedding_layernorm": "bert.embeddings.LayerNorm",
    **{f"layers.*.{ours}": f"{'>' * (ours in INPUTS)}{BLOCK}.{name}" for ours, name in TRACED_BLOCK.items()},
    "logits": "cls.predictions.decoder",
}

BERT = Family(
    title="BERT",
    model_types=["bert"],
    lm_class="BertForMaskedLM",
    read_config=read_config,
    harmless=[*DROPOUT, *OTHER_FAMILIES],
    names=NAMES,
    shapes=shapes,
    biases=biases,
    block_weights=GPT2BlockWeights,
    transform=bert_transform,
    block=bert_block,
    final_norm=final_norm,
    final_norm_of_parts=lambda parts, *_: parts,
    structure=structure,
    norm_text=layer_norm_text,
    parts=PARTS,
    work=work,
    norm_flops=norm_flops,
    traced=TRACED,
    lm_head=masked_lm_head,
    not_needed=NOT_NEEDED,
    part=masked_part,
    stream=("post_attention_layernorm", "post_feedforward_layernorm"),
    weights=BertWeights,
    sequence_head=pooled_head,
    renamed=renamed,
    outside_work=outside_work,
)
