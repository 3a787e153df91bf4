"""Do the tests notice a bug? One-line bugs ("mutants"), each with the tests that must fail because of it.

    python tools/mutate.py              all of them
    python tools/mutate.py -k rope      those with "rope" in their file or description

Each mutant changes one place of npllm/, in a copy of the repository and never in the repository itself; then only the
tests named with it are run. Those tests must pass without any mutant. Prints a table, and exits with 1 if a mutant
survives, that is, if its tests pass.

Every run of pytest is a fork of this process, which has imported what takes long to import (a second each time), and
nothing of npllm.

A new convention in the code (an order, a sign, a boundary) deserves a line here.
"""

import argparse
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
COPIED = ("npllm", "tests", "setup.cfg", "README.md")
WORKERS = 2
TIMEOUT = 300  # seconds
IMPORTED = "numpy pytest hypothesis jaxtyping beartype array_api_strict array_api_compat.numpy ml_dtypes tokenizers"
IMPORTED += " safetensors.numpy huggingface_hub jinja2.sandbox tqdm threadpoolctl gguf rich.console"
SETTINGS = {
    "HYPOTHESIS_PROFILE": "mutants",
    "PYTHONDONTWRITEBYTECODE": "1",  # a mutant of the same size and second would be taken for the file before it
    "OMP_NUM_THREADS": "1",  # NumPy has no threads then, which a fork would lose
}


class Mutant(NamedTuple):
    bug: str  # what is wrong
    file: str  # in npllm/
    old: str  # must occur exactly once in the file
    new: str
    tests: tuple[str, ...]  # in tests/; at least one must fail


def mutant(bug: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    return Mutant(bug, file, old, new, tests)


ROPE = "test_rope.py::test_it_is_the_loop[numpy]"
NORM = "test_norm.py::test_it_is_the_loop[numpy]"
LAYER_NORM = "test_norm.py::test_layer_norm_is_the_loop[numpy]"
WAVES = "test_positions.py::test_sinusoidal_positions_are_the_loop[numpy]"
PLAIN = "test_feedforward.py::test_the_plain_network_is_the_loop[numpy-True-{}]"
PLAIN_BLOCK = "test_gpt2.py::test_a_block_is_the_loop[numpy-{}]"
SCORES = "test_heads.py::test_the_sequence_head_is_the_loop_at_the_last_token_that_is_no_padding[numpy]"
ATTENTION = "test_attention.py::test_it_is_the_loop[numpy]"
FLASH = "test_flash.py::test_it_is_naive_attention_for_every_tile_size_and_mask[numpy]"
SWIGLU = "test_feedforward.py::test_swiglu_is_the_loop[numpy]"
BLOCK = "test_block.py::test_it_is_the_loop[numpy]"
MODEL = "test_model.py::test_it_is_the_loop[numpy]"
CHUNKED = "test_model.py::test_chunked_equals_whole[numpy]"
LONG_PROMPT = "test_loop.py::test_a_long_prompt_goes_through_in_chunks_of_256_tokens"
SPECULATION = "test_speculation.py::test_greedy_decoding_with_lookup_gives_the_same_ids"
LOOKUP = "test_speculation.py::test_the_lookup_copies_what_followed_the_last_place_of_the_last_tokens"
DRAWN = "test_speculation.py::test_a_drawn_draft_leaves_the_models_probabilities"
STOP = "test_loop.py::test_a_stop_string_never_leaks"
NOT_FINITE = "test_loop.py::test_logits_that_are_not_finite_are_refused[numpy-greedy-nan]"

LENS = "test_inspect.py::test_the_lens_of_the_last_block_gives_the_logits"
COSTS = "test_inspect.py::test_the_arithmetic_is_what_a_counting_run_counts"
READS = "test_inspect.py::test_each_weight_is_read_once_and_the_cache_whole"

MUTANTS = [
    # Positions
    mutant(
        "turned the other way round",
        "rope.py",
        "[first * cos - second * sin, second * cos + first * sin, rest]",
        "[first * cos + second * sin, second * cos - first * sin, rest]",
        "test_rope.py::test_a_token_at_position_one_turns_its_first_pair_by_one_radian_counterclockwise[numpy]",
    ),
    mutant(
        "neighbouring dimensions paired",
        "rope.py",
        "x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]",
        "x[..., 0 : 2 * pairs : 2], x[..., 1 : 2 * pairs : 2], x[..., 2 * pairs :]",
        ROPE,
    ),
    mutant("theta ignored", "rope.py", "1.0 / config.rope_theta**exponents", "1.0 / 10000.0**exponents", MODEL),
    mutant(
        "exponents half as large", "rope.py", "device=device(like)) / pairs", "device=device(like)) / 2 / pairs", ROPE
    ),
    mutant(
        "partial rotary ignored",
        "rope.py",
        "pairs = config.rotary_dim // 2",
        "pairs = config.head_dim // 2",
        "test_rope.py::test_partial_rotary_passes_the_rest[numpy]",
    ),
    mutant(
        "linear scaling multiplied",
        "rope.py",
        'return frequencies / scaling["factor"]',
        'return frequencies * scaling["factor"]',
        "test_rope.py::test_linear_scaling_divides_the_positions[numpy]",
    ),
    mutant(
        "llama3 scaling slows the wrong pairs",
        "rope.py",
        'kept * frequencies + (1.0 - kept) * frequencies / scaling["factor"]',
        '(1.0 - kept) * frequencies + kept * frequencies / scaling["factor"]',
        "test_rope.py::test_llama3_scaling_keeps_high_frequencies_and_divides_low_ones[numpy]",
    ),
    mutant(
        "llama3 scaling jumps",
        "rope.py",
        "xp.clip((turns - low) / (high - low), 0.0, 1.0)",
        "xp.astype(turns > high, xp.float32)",
        "test_rope.py::test_llama3_scaling_is_that_of_its_formula[numpy]",
    ),
    # Norms
    mutant("eps ignored", "norm.py", "xp.sqrt(mean_square + eps)", "xp.sqrt(mean_square)", NORM),
    mutant("eps outside of the root", "norm.py", "xp.sqrt(mean_square + eps)", "(xp.sqrt(mean_square) + eps)", NORM),
    mutant("mean without square", "norm.py", "xp.mean(x32 * x32,", "xp.mean(x32,", NORM),
    mutant("sum instead of mean", "norm.py", "xp.mean(x32 * x32,", "xp.sum(x32 * x32,", NORM),
    mutant(
        "weight ignored",
        "norm.py",
        "(mean_square + eps), x.dtype, copy=False) * weight",
        "(mean_square + eps), x.dtype, copy=False)",
        NORM,
    ),
    mutant(
        "squares in float16",
        "norm.py",
        "x32 = xp.astype(x, xp.float32, copy=False)  # squares",
        "x32 = x  # squares",
        "test_norm.py::test_squares_of_float16_do_not_overflow[numpy]",
    ),
    mutant(
        "the mean is left in",
        "norm.py",
        "centred = x32 - xp.mean(x32, axis=-1, keepdims=True)",
        "centred = x32",
        LAYER_NORM,
    ),
    mutant(
        "variance over D - 1",
        "norm.py",
        "xp.mean(centred * centred, axis=-1, keepdims=True)",
        "xp.sum(centred * centred, axis=-1, keepdims=True) / (x.shape[-1] - 1)",
        LAYER_NORM,
    ),
    mutant(
        "LayerNorm's eps outside of the root",
        "norm.py",
        "xp.sqrt(variance + eps)",
        "(xp.sqrt(variance) + eps)",
        LAYER_NORM,
    ),
    mutant("LayerNorm's weight ignored", "norm.py", "copy=False) * weight + bias", "copy=False) + bias", LAYER_NORM),
    mutant("LayerNorm's bias ignored", "norm.py", "copy=False) * weight + bias", "copy=False) * weight", LAYER_NORM),
    # Absolute positions
    mutant(
        "cosine before sine",
        "positions.py",
        "[xp.sin(angles), xp.cos(angles)]",
        "[xp.cos(angles), xp.sin(angles)]",
        WAVES,
    ),
    mutant(
        "sines in one half, cosines in the other",
        "positions.py",
        "xp.stack([xp.sin(angles), xp.cos(angles)], axis=-1)",
        "xp.concat([xp.sin(angles), xp.cos(angles)], axis=-1)",
        WAVES,
    ),
    mutant(
        "waves half as far apart",
        "positions.py",
        "device=device(positions)) / width",
        "device=device(positions)) / 2 / width",
        WAVES,
    ),
    mutant(
        "the first token is number one",
        "positions.py",
        "xp.astype(positions, xp.float32)",
        "xp.astype(positions + 1, xp.float32)",
        WAVES,
    ),
    # Attention
    mutant(
        "scores not divided by the root of H",
        "attention.py",
        "xp.reshape(q / math.sqrt(width),",
        "xp.reshape(q,",
        "test_attention.py::test_scores_are_divided_by_the_root_of_the_head_width[numpy]",
    ),
    mutant(
        "values before keys in qkv_proj",
        "attention.py",
        "return q, k, v",
        "return q, v, k",
        "test_attention.py::test_the_rows_of_qkv_proj_make_queries_then_keys_then_values[numpy-2-False]",
    ),
    mutant(
        "key head of a query head by stride",
        "attention.py",
        "return xp.reshape((k @ grouped.mT).mT if few else grouped @ k.mT, (*batch, heads, new, length))",
        "return q / math.sqrt(width) @ xp.concat([k] * (heads // kv_heads), axis=-3).mT",
        "test_attention.py::test_neighbouring_query_heads_share_a_key_head[numpy]",
    ),
    mutant(
        "value head of a query head by stride",
        "attention.py",
        "return xp.reshape(grouped @ v, (*batch, heads, new, width))",
        "return weights @ xp.concat([v] * (heads // kv_heads), axis=-3)",
        ATTENTION,
    ),
    mutant(
        "softmax over the queries",
        "attention.py",
        "total = xp.sum(shares, axis=-1, keepdims=True)",
        "total = xp.sum(shares, axis=-2, keepdims=True)",
        ATTENTION,
    ),
    mutant(
        "largest score not taken away",
        "attention.py",
        "xp.exp(scores - xp.maximum(largest, -1e38))",
        "xp.exp(scores)",
        "test_attention.py::test_the_largest_of_saturated_scores_takes_all[numpy]",
    ),
    mutant(
        "a row that sees nothing is NaN",
        "attention.py",
        "xp.maximum(total, 1.0)",
        "total",
        "test_attention.py::test_a_query_that_sees_nothing_gets_zeros[numpy]",
    ),
    mutant("mask ignored", "attention.py", "if visible is not None:", "if False:", ATTENTION),
    mutant(
        "hidden scores are only small",
        "attention.py",
        "scores, -math.inf)",
        "scores, -1e4)",
        "test_attention.py::test_weights_are_positive_sum_to_one_and_are_zero_where_hidden[numpy]",
    ),
    mutant(
        "heads not side by side",
        "attention.py",
        "x = xp.permute_dims(x, (*range(n - 3), n - 2, n - 3, n - 1))",
        "x = x",
        "test_attention.py::test_split_heads_gives_each_head_neighbouring_dimensions[numpy]",
    ),
    # Masks
    mutant(
        "a token does not see itself",
        "masks.py",
        "keys[..., None, :] <= queries",
        "keys[..., None, :] < queries",
        "test_masks.py::test_causal_sees_itself_and_what_is_before[numpy]",
    ),
    mutant(
        "window one too long",
        "masks.py",
        "> queries[..., :, None] - window",
        ">= queries[..., :, None] - window",
        "test_masks.py::test_a_window_of_three[numpy]",
    ),
    mutant(
        "window one too short",
        "masks.py",
        "> queries[..., :, None] - window",
        "> queries[..., :, None] - window + 1",
        "test_masks.py::test_a_window_of_three[numpy]",
    ),
    mutant(
        "one new token sees past its window",
        "masks.py",
        "if new == 1 and (window is None or window >= total):",
        "if new == 1:",
        "test_masks.py::test_one_token_and_a_window_shorter_than_the_cache[numpy]",
    ),
    mutant(
        "queries count from 0 after a cache",
        "masks.py",
        "xp.arange(past, total, device",
        "xp.arange(0, new, device",
        "test_masks.py::test_causal_with_two_tokens_in_the_cache[numpy]",
    ),
    mutant(
        "bidirectional sees only what is before",
        "masks.py",
        "return causal(queries, keys) | (keys[..., None, :] > queries[..., :, None])",
        "return causal(queries, keys)",
        "test_streams.py::test_the_causal_mask_is_what_makes_a_stream_blind_for_what_comes_after[numpy]",
    ),
    mutant(
        "stride counted from the first token",
        "masks.py",
        "(queries[..., :, None] - keys[..., None, :]) % stride == 0",
        "keys[..., None, :] % stride == 0",
        "test_masks.py::test_strided_sees_the_last_three_and_every_third_before_them[numpy]",
    ),
    mutant(
        "strided sees what comes after",
        "masks.py",
        "| (causal(queries, keys) & each)",
        "| each",
        "test_masks.py::test_strided_sees_the_last_three_and_every_third_before_them[numpy]",
    ),
    mutant(
        "strided without the tokens in between",
        "masks.py",
        "return sliding_window(queries, keys, stride) | (",
        "return (",
        "test_masks.py::test_each_is_the_loop[numpy-strided]",
    ),
    mutant(
        "the first tokens of a block sum it up",
        "masks.py",
        "% block >= block - summary",
        "% block < summary",
        "test_masks.py::test_fixed_sees_its_block_of_four_and_the_last_two_of_each_block_before[numpy]",
    ),
    mutant(
        "one summary token too few",
        "masks.py",
        "% block >= block - summary",
        "% block > block - summary",
        "test_masks.py::test_over_two_sparse_layers_every_token_reaches_all_before_it[numpy]",
    ),
    mutant(
        "one local block too many",
        "masks.py",
        "query_block - key_block < local_blocks",
        "query_block - key_block <= local_blocks",
        "test_masks.py::test_block_local_sees_two_blocks_of_two_and_every_third_block[numpy]",
    ),
    mutant(
        "the first instead of the last of each stride",
        "masks.py",
        "(key_block + offset + 1) % stride",
        "(key_block + offset) % stride",
        "test_masks.py::test_block_local_sees_two_blocks_of_two_and_every_third_block[numpy]",
    ),
    mutant(
        "a head's blocks shifted the other way",
        "masks.py",
        "(key_block + offset + 1) % stride",
        "(key_block - offset + 1) % stride",
        "test_masks.py::test_another_head_of_phi_3_small_sees_other_blocks[numpy]",
    ),
    mutant(
        "padding sees padding",
        "masks.py",
        " & (keys[..., None, :] >= 0)",
        "",
        "test_masks.py::test_documents_of_three_tokens_and_two_and_padding_that_nobody_sees[numpy]",
    ),
    mutant(
        "the second mask first",
        "masks.py",
        "masks[layer % len(masks)]",
        "masks[(layer + 1) % len(masks)]",
        "test_masks.py::test_each_layer_has_its_turn",
    ),
    # Attention, tile by tile
    mutant("the sum so far not shrunk", "flash.py", "shrink * total + xp.sum", "total + xp.sum", FLASH),
    mutant("the result so far not shrunk", "flash.py", "shrink * mixed + combine", "mixed + combine", FLASH),
    mutant(
        "the largest score so far forgotten",
        "flash.py",
        "xp.maximum(largest, xp.max(scores, axis=-1, keepdims=True))",
        "xp.max(scores, axis=-1, keepdims=True)",
        FLASH,
    ),
    mutant("the largest score at least 0", "flash.py", "largest = total - 1e38", "largest = total", FLASH),
    mutant(
        "the largest score -inf before the first",
        "flash.py",
        "largest = total - 1e38",
        "largest = total - math.inf",
        "test_flash.py::test_a_query_that_sees_nothing_gets_zeros[numpy]",
    ),
    mutant("not divided by the sum", "flash.py", "mixed / xp.maximum(total, 1.0)", "mixed", FLASH),
    mutant(
        "the mask of the first queries for all tiles",
        "flash.py",
        "visible[..., None, row, column]",
        "visible[..., None, : row.stop - row.start, column]",
        FLASH,
    ),
    mutant(
        "a tile skipped if anything in it is hidden",
        "flash.py",
        "xp.any(visible[..., row, column])",
        "xp.all(visible[..., row, column])",
        FLASH,
    ),
    mutant(
        "a tile skipped for a batch as for its first sequence",
        "flash.py",
        "xp.any(visible[..., row, column])",
        "xp.any(xp.reshape(visible, (-1, new, length))[0, row, column])",
        "test_flash.py::test_each_sequence_of_a_batch_has_its_own_mask[numpy]",
    ),
    mutant(
        "nothing skipped",
        "flash.py",
        "if next(seen)]",
        "if [next(seen)]]",
        "test_flash.py::test_sparse_attention_computes_only_the_visible_tiles_and_equals_the_masked_one[numpy]",
    ),
    mutant(
        "one bit too few in a number of tiles",
        "flash.py",
        "for bit in range(31)]",
        "for bit in range(30)]",
        "test_flash.py::test_there_may_be_any_number_of_tiles[numpy-62]",
    ),
    mutant(
        "the weights not counted among the bytes",
        "inspect/cost.py",
        "+ 4 * config.num_attention_heads * new * length",
        "+ 2 * config.num_attention_heads * new * length",
        "test_flash.py::test_the_bytes_of_naive_attention_are_what_its_three_steps_read_and_write",
    ),
    mutant(
        "bytes of keys for each query head",
        "inspect/cost.py",
        "2 * config.num_key_value_heads * config.head_dim",
        "2 * config.num_attention_heads * config.head_dim",
        "test_flash.py::test_the_bytes_are_those_that_the_tiles_read_and_write",
    ),
    # Packing
    mutant(
        "only the last row looked at",
        "apps/packing.py",
        "for row in rows:",
        "for row in rows[-1:]:",
        "test_packing.py::test_a_document_goes_into_the_first_row_with_room",
    ),
    mutant(
        "a row never quite full",
        "apps/packing.py",
        "+ length <= capacity",
        "+ length < capacity",
        "test_packing.py::test_a_document_goes_into_the_first_row_with_room",
    ),
    mutant(
        "positions that run on through the row",
        "apps/packing.py",
        "range(end - start)",
        "range(start, end)",
        "test_packing.py::test_under_the_mask_absolute_positions_must_begin_anew_and_rotary_ones_need_not[numpy]",
    ),
    mutant(
        "padding belongs to the first document",
        "apps/packing.py",
        "for fill in (0, 0, -1)",
        "for fill in (0, 0, 0)",
        "test_packing.py::test_nobody_sees_the_padding[numpy]",
    ),
    # Feed-forward network
    mutant(
        "up before gate",
        "feedforward.py",
        'tap("gate", gate_up[..., :width]), tap("up", gate_up[..., width:])',
        'tap("gate", gate_up[..., width:]), tap("up", gate_up[..., :width])',
        "test_feedforward.py::test_the_network_is_the_loop_gate_first_then_up[numpy-False]",
    ),
    mutant("silu left out", "feedforward.py", "return silu(gate) * up", "return gate * up", SWIGLU),
    mutant("sigmoid instead of silu", "feedforward.py", "return x / (1.0 +", "return 1.0 / (1.0 +", SWIGLU),
    mutant(
        "silu overflows",
        "feedforward.py",
        "xp.exp(xp.minimum(-x, 88.0))",
        "xp.exp(-x)",
        "test_feedforward.py::test_silu_of_large_numbers_does_not_warn[numpy]",
    ),
    mutant("gelu without its cubic term", "feedforward.py", "(x + 0.044715 * x * x * x)", "x", PLAIN.format("gelu")),
    mutant(
        "gelu with 2 / π and not its root",
        "feedforward.py",
        "math.sqrt(2.0 / math.pi)",
        "2.0 / math.pi",
        PLAIN.format("gelu"),
    ),
    mutant("relu is the absolute value", "feedforward.py", "maximum(x, 0.0)", "maximum(x, -x)", PLAIN.format("relu")),
    mutant(
        "the plain network's first bias left out",
        "feedforward.py",
        "linear(x, weights.c_fc, weights.c_fc_bias)",
        "linear(x, weights.c_fc)",
        PLAIN.format("gelu"),
    ),
    # Linear layer and embedding
    mutant(
        "bias left out",
        "linear.py",
        "return y if bias is None else y + bias",
        "return y",
        "test_linear.py::test_it_is_the_loop[numpy]",
    ),
    mutant(
        "embeddings in the dtype of the file",
        "embedding.py",
        "xp.astype(vectors, xp.float32, copy=False)",
        "vectors",
        "test_embedding.py::test_the_vectors_are_float32[float16]",
    ),
    # The KV cache
    mutant(
        "written one slot late",
        "cache.py",
        "keys[..., past:total, :] = k",
        "keys[..., past + 1 : total + 1, :] = k",
        "test_cache.py::test_append_writes_behind_what_is_held[numpy]",
    ),
    mutant(
        "keys kept as values",
        "cache.py",
        "values[..., past:total, :] = v",
        "values[..., past:total, :] = k",
        "test_cache.py::test_append_writes_behind_what_is_held[numpy]",
    ),
    mutant(
        "a copy at every step",
        "cache.py",
        "keys, values = keys[..., :total, :], values[..., :total, :]",
        "keys, values = keys[..., :total, :] + 0.0, values[..., :total, :] + 0.0",
        "test_cache.py::test_decoding_hands_the_cache_itself_to_attention_and_never_a_copy",
    ),
    mutant(
        "all slots handed out, empty ones too",
        "cache.py",
        "    keys, values = keys[..., :total, :], values[..., :total, :]\n",
        "",
        CHUNKED,
    ),
    mutant(
        "grow forgets what is held",
        "cache.py",
        'new[..., : cache["length"], :] = old[..., : cache["length"], :]',
        "new[..., :0, :] = old[..., :0, :]",
        "test_cache.py::test_grow_keeps_what_is_held_and_makes_room[numpy]",
    ),
    mutant(
        "capacity not checked",
        "cache.py",
        "if total > keys.shape[-2]:",
        "if False:",
        "test_cache.py::test_a_full_cache_refuses_more",
    ),
    # The block
    mutant(
        "residual around attention missing",
        "block.py",
        "x = x + self_attention(\n        normed, weights, config, cos",
        "x = self_attention(\n        normed, weights, config, cos",
        BLOCK,
    ),
    mutant("residual around the network missing", "block.py", "x = x + feedforward(", "x = feedforward(", BLOCK),
    mutant(
        "second norm of the first norm's result",
        "block.py",
        "rms_norm(x, weights.post_attention_layernorm",
        "rms_norm(normed, weights.post_attention_layernorm",
        "test_block.py::test_the_feedforward_network_sees_what_attention_has_added[numpy]",
    ),
    mutant(
        "second norm with the weights of the first",
        "block.py",
        "rms_norm(x, weights.post_attention_layernorm",
        "rms_norm(x, weights.input_layernorm",
        BLOCK,
    ),
    mutant(
        "attention without its norm",
        "block.py",
        "rms_norm(x, weights.input_layernorm, config.rms_norm_eps)",
        "x",
        "test_block.py::test_the_norms_stand_before_the_layers_so_a_longer_input_adds_the_same[numpy]",
    ),
    mutant(
        "post-norm instead of pre-norm",
        "block.py",
        'x = x + feedforward(normed, weights, tap=under(tap, "feedforward"))',
        "x = rms_norm(x + feedforward(x, weights), weights.post_attention_layernorm, config.rms_norm_eps)",
        "test_block.py::test_with_projections_of_zero_the_residual_stream_passes_unchanged[numpy]",
    ),
    mutant(
        "keys not rotated",
        "block.py",
        'tap("k_rotated", apply_rope(k, cos, sin))',
        'tap("k_rotated", k)',
        "test_model.py::test_only_the_distance_of_positions_matters[numpy]",
    ),
    mutant(
        "the pass goes on without what the tap returned",
        "block.py",
        'x = tap("residual_after_attention", x)\n    normed = tap("post_attention_layernorm", rms_norm',
        'tap("residual_after_attention", x)\n    normed = tap("post_attention_layernorm", rms_norm',
        "test_tap.py::test_a_tap_that_returns_another_value_changes_the_result[layers.0.residual_after_attention]",
    ),
    mutant(
        "GPT-2's second norm with the weights of the first",
        "block.py",
        'normed = tap("post_attention_layernorm", layer_norm(x, weights.ln_2, weights.ln_2_bias, eps))',
        'normed = tap("post_attention_layernorm", layer_norm(x, weights.ln_1, weights.ln_1_bias, eps))',
        PLAIN_BLOCK.format("gpt2"),
    ),
    mutant(
        "GPT-2 with ReLU",
        "block.py",
        "plain_feedforward(normed, weights, gelu",
        "plain_feedforward(normed, weights, relu",
        PLAIN_BLOCK.format("gpt2"),
    ),
    mutant(
        "the original block with GELU",
        "block.py",
        "plain_feedforward(x, weights, relu",
        "plain_feedforward(x, weights, gelu",
        PLAIN_BLOCK.format("original"),
    ),
    mutant(
        "the original network's residual missing",
        "block.py",
        "x = x + plain_feedforward(x,",
        "x = plain_feedforward(x,",
        PLAIN_BLOCK.format("original"),
    ),
    mutant(
        "the original block's first norm before attention",
        "block.py",
        "x = x + self_attention(\n        x, weights,",
        "x = x + self_attention(\n        layer_norm(x, weights.ln_1, weights.ln_1_bias, eps), weights,",
        PLAIN_BLOCK.format("original"),
    ),
    mutant(
        "the original block does not end with a norm",
        "block.py",
        'return tap("post_feedforward_layernorm", layer_norm(x, weights.ln_2, weights.ln_2_bias, eps))',
        'return tap("post_feedforward_layernorm", x)',
        "test_gpt2.py::test_what_an_original_block_gives_is_normalized_and_what_gpt2s_gives_is_not[numpy]",
    ),
    # The whole pass
    mutant(
        "length not advanced",
        "model.py",
        'cache["length"] = past + new\n    return tap("norm", rms_norm',
        'cache["length"] = past\n    return tap("norm", rms_norm',
        CHUNKED,
    ),
    mutant(
        "length advanced before the blocks",
        "model.py",
        'x = tap("embedding", embed(ids, weights.embed_tokens))\n    for',
        'x = tap("embedding", embed(ids, weights.embed_tokens)); (cache or {}).update(length=past + new)\n    for',
        "test_cache.py::test_length_moves_on_after_the_last_block_only",
    ),
    mutant(
        "positions count from 0 in every chunk",
        "model.py",
        "xp.arange(past, past + new, device=device(ids))\n    cos, sin",
        "xp.arange(0, new, device=device(ids))\n    cos, sin",
        CHUNKED,
    ),
    mutant(
        "final norm missing",
        "model.py",
        'tap("norm", rms_norm(x, weights.norm, config.rms_norm_eps))',
        'tap("norm", x)',
        MODEL,
    ),
    mutant(
        "window in the layers of full attention",
        "model.py",
        "masks[config.window(layer)]",
        "masks[config.sliding_window]",
        "test_model.py::test_only_the_layers_of_type_sliding_attention_have_the_window",
    ),
    mutant(
        "positions not added",
        "model.py",
        'x = x + tap("position_embedding",',
        'tap("position_embedding",',
        "test_gpt2.py::test_the_pass_is_the_loop[numpy-gpt2]",
    ),
    mutant(
        "absolute positions count from 0 in every chunk",
        "model.py",
        "xp.arange(past, past + new, device=device(ids))\n    if visible",
        "xp.arange(0, new, device=device(ids))\n    if visible",
        "test_gpt2.py::test_chunked_equals_whole[numpy-gpt2]",
    ),
    mutant(
        "length not advanced by GPT-2",
        "model.py",
        'cache["length"] = past + new\n    if final_norm',
        'cache["length"] = past\n    if final_norm',
        "test_gpt2.py::test_cache_equals_no_cache[numpy-gpt2]",
    ),
    mutant(
        "GPT-2's last norm missing",
        "model.py",
        "if final_norm:",
        "if False:",
        "test_gpt2.py::test_the_last_norm_is_gpt2s_and_the_original_has_its_blocks[numpy]",
    ),
    mutant("every head is tied", "heads.py", "weights.lm_head)", "weights.embed_tokens)", MODEL),
    mutant("the last token speaks, padding or not", "heads.py", "if pad_token_id is None else", "if True else", SCORES),
    mutant("the first token speaks", "heads.py", "last = xp.max(filled,", "last = 0 * xp.max(filled,", SCORES),
    mutant(
        "a token's score without its bias",
        "heads.py",
        "return linear(hidden, weights.score, weights.score_bias)",
        "return linear(hidden, weights.score)",
        "test_heads.py::test_the_token_head_is_the_loop_at_every_token[numpy-True-batch0]",
    ),
    mutant(
        "hidden scores recorded as 0",
        "inspect/record.py",
        'float("-inf") if leaf == "scores" else 0.0',
        "0.0",
        "test_tap.py::test_what_an_earlier_chunk_could_not_see_is_filled_as_a_mask_would[numpy]",
    ),
    # The configuration
    mutant(
        "head_dim ignored",
        "checkpoint/config_json.py",
        'integer("head_dim", default=hidden // heads)',
        "hidden // heads",
        "test_config.py::test_head_dim_wins_over_the_width_per_head",
    ),
    mutant(
        "Qwen2's window one layer late",
        "checkpoint/config_json.py",
        "layer >= first_sliding",
        "layer > first_sliding",
        "test_config.py::test_the_window_holds_where_the_model_type_says",
    ),
    mutant(
        "Qwen2's window without use_sliding_window",
        "checkpoint/config_json.py",
        'keys.get("use_sliding_window") is not True',
        'keys.get("use_sliding_window") is False',
        "test_config.py::test_the_window_holds_where_the_model_type_says",
    ),
    mutant(
        "labels in the order of their names",
        "checkpoint/config_json.py",
        "tuple(labels[i] for i in ids)",
        "tuple(labels[i] for i in sorted(ids))",
        "test_classification.py::test_labels_stand_in_the_order_of_the_scores",
    ),
    # GPT-2's files
    mutant(
        "GPT-2's matrices as they lie in the file",
        "checkpoint/load.py",
        "place = weight.T if part.transposed else",
        "place = weight.reshape(part.shape) if part.transposed else",
        "test_checkpoint_gpt2.py::test_a_matrix_longer_than_a_piece_is_joined",
    ),
    mutant(
        "GPT-2 without n_inner is half as wide inside",
        "checkpoint/gpt2.py",
        'common["intermediate_size"] = 4 *',
        'common["intermediate_size"] = 2 *',
        "test_checkpoint_gpt2.py::test_what_config_json_leaves_out_has_gpt2s_default",
    ),
    mutant(
        "another scale of the scores goes unnoticed",
        "checkpoint/gpt2.py",
        '"scale_attn_by_inverse_layer_idx": (False,),',
        '"scale_attn_by_inverse_layer_idx": (False, True),',
        "test_checkpoint_gpt2.py::test_config_that_npllm_cannot_compute",
    ),
    mutant(
        "GPT-2 computed with the modern pass",
        "checkpoint/load.py",
        'whole_pass = gpt2_transform if files.config.model_type == "gpt2" else transform',
        "whole_pass = transform",
        "test_checkpoint_gpt2.py::test_it_generates_text_chunk_by_chunk_as_in_one",
    ),
    # Weights in few bits
    mutant(
        "float16: the wrong power of two",
        "storage/packed.py",
        "y *= BEHIND",
        "y *= BEFORE",
        "test_packed.py::test_a_product_is_that_of_the_widened_weight",
    ),
    mutant(
        "float16: the sign lost",
        "storage/packed.py",
        "np.int32(-0x70002000)",
        "np.int32(0x0FFFE000)",
        "test_packed.py::test_every_16_bit_number_is_widened_exactly[float16]",
    ),
    mutant(
        "the last rows of a thread left out",
        "storage/packed.py",
        "range(first, last, at_once)",
        "range(first, last - at_once + 1, at_once)",
        "test_packed.py::test_a_product_is_that_of_the_widened_weight",
    ),
    mutant(
        "4 bits: the halves of a group swapped",
        "storage/packed.py",
        "codes if whole_bytes else np.right_shift(codes, 4, out=one_by_one)",
        "codes if whole_bytes else one_by_one",
        "test_packed.py::test_a_product_is_that_of_the_widened_weight",
    ),
    mutant(
        "4 bits: the lower code counted twice",
        "storage/packed.py",
        "np.concatenate([lower - upper / 16, upper / 16], axis=-1)",
        "np.concatenate([lower, upper / 16], axis=-1)",
        "test_packed.py::test_a_product_is_that_of_the_widened_weight",
    ),
    mutant(
        "the minimum left out of a product",
        "storage/packed.py",
        "y[block] += np.dot(sums, self.minimum[block].astype(np.float32, copy=False))",
        "pass",
        "test_packed.py::test_a_product_is_that_of_the_widened_weight",
    ),
    mutant(
        "the scale of the first group for all of them",
        "storage/packed.py",
        "partial *= scale[:, None, :]",
        "partial *= scale[0]",
        "test_packed.py::test_a_product_is_that_of_the_widened_weight",
    ),
    mutant(
        "many vectors: the scale left out",
        "storage/packed.py",
        "tile *= scale[:, None, :]",
        "tile *= 1",
        "test_packed.py::test_a_product_is_that_of_the_widened_weight",
    ),
    mutant(
        "the threads share a border row",
        "devices/threads.py",
        "count * i // self.threads for i",
        "-(-count * i // self.threads) - (i == 1) for i",
        "test_packed.py::test_the_threads_cover_every_row_once",
    ),
    mutant(
        "a fork waits for its parent's threads",
        "devices/threads.py",
        "if self.process != os.getpid():",
        "if self.process < 0:",
        "test_packed.py::test_a_fork_makes_threads_of_its_own",
    ),
    mutant(
        "scratch given away while a thread writes to it",
        "devices/threads.py",
        "self.tiles = [np.empty_like(tile) for tile in self.tiles]",
        "self.tiles = list(self.tiles)",
        "test_packed.py::test_after_an_interruption_nobody_gets_scratch_that_is_in_use",
    ),
    mutant(
        "the calling thread stays on its core for ever",
        "devices/threads.py",
        "        stay_on(before)",
        "        pass",
        "test_packed.py::test_each_thread_has_a_core_of_its_own_while_they_share",
    ),
    mutant(
        "fewer threads than cores are kept on cores too",
        "devices/threads.py",
        "return cores if len(cores) == threads > 1 else []",
        "return cores[:threads]",
        "test_packed.py::test_fewer_threads_than_cores_go_where_they_like",
    ),
    mutant(
        "matrices overlap in the piece that they share",
        "storage/packed.py",
        "(-(-math.prod(shape) // 16) * 16 for shape in shapes.values())",
        "(math.prod(shape) // 16 * 16 for shape in shapes.values())",
        "test_packed.py::test_rooms_are_apart",
    ),
    mutant(
        "an error in a thread swallowed",
        "devices/threads.py",
        "other.result()",
        "other.done()",
        "test_packed.py::test_an_error_in_a_thread_is_an_error_of_the_product",
    ),
    mutant(
        "Q4_K: the upper bits of the later scales lost",
        "storage/gguf_blocks.py",
        "rest & 15 | (low >> 6) << 4",
        "rest & 15",
        "test_gguf.py::test_quantized_blocks_are_bit_equal_with_the_gguf_package",
    ),
    mutant(
        "Q6_K: not counted from -32",
        "storage/gguf_blocks.py",
        "np.int8(32)",
        "np.int8(31)",
        "test_gguf.py::test_quantized_blocks_are_bit_equal_with_the_gguf_package",
    ),
    mutant(
        "groups: rows of interleaved heads left where they are",
        "checkpoint/narrow.py",
        "back = slice(None) if order is None else np.argsort(order)",
        "back = slice(None)",
        "test_packed.py::test_blocks_of_a_file_keep_their_numbers",
    ),
    mutant(
        "groups: the smallest code ignored",
        "checkpoint/narrow.py",
        "offset=kinds[0].smallest if four else 0,",
        "offset=0,",
        "test_packed.py::test_blocks_of_a_file_keep_their_numbers",
    ),
    # Sampling
    mutant(
        "temperature ignored",
        "sampling.py",
        "return logits / temperature",
        "return logits",
        "test_sampling.py::test_temperature_divides_the_logits[numpy]",
    ),
    mutant(
        "top-k keeps one more",
        "sampling.py",
        "[min(k, logits.shape[-1]) - 1]",
        "[min(k, logits.shape[-1] - 1)]",
        "test_sampling.py::test_top_k_keeps_the_k_likeliest[numpy]",
    ),
    mutant(
        "top-p leaves out the token that reaches p",
        "sampling.py",
        "xp.cumulative_sum(probabilities) - probabilities",
        "xp.cumulative_sum(probabilities)",
        "test_sampling.py::test_top_p_keeps_the_fewest_tokens_that_sum_to_p[numpy]",
    ),
    mutant(
        "min-p of the logit instead of the probability",
        "sampling.py",
        "xp.max(logits) + math.log(p)",
        "xp.max(logits) * p",
        "test_sampling.py::test_min_p_keeps_tokens_at_least_p_times_as_likely_as_the_likeliest[numpy]",
    ),
    mutant(
        "repetition rewarded",
        "sampling.py",
        "logits / penalty, logits * penalty",
        "logits * penalty, logits / penalty",
        "test_sampling.py::test_the_repetition_penalty_makes_positive_and_negative_logits_less_likely[numpy]",
    ),
    mutant(
        "negative logits divided by the penalty",
        "sampling.py",
        "xp.where(logits > 0, logits / penalty, logits * penalty)",
        "logits / penalty",
        "test_sampling.py::test_the_repetition_penalty_makes_positive_and_negative_logits_less_likely[numpy]",
    ),
    mutant(
        "draw < instead of <=",
        "sampling.py",
        "cumulated <= target",
        "cumulated < target",
        "test_sampling.py::test_a_ruled_out_token_is_never_drawn[numpy]",
    ),
    mutant(
        "a random number just below 1 draws nothing",
        "sampling.py",
        "min(uniform, 1 - 2**-23)",
        "uniform",
        "test_sampling.py::test_a_ruled_out_token_is_never_drawn[numpy]",
    ),
    # The funnel
    mutant(
        "the funnel ends with all other tokens",
        "inspect/funnel.py",
        "ids == values[last]",
        "ids != values[last]",
        "test_sampling.py::test_the_funnel_ends_with_the_token_that_choose_takes[numpy]",
    ),
    mutant(
        "tokens that are ruled out counted",
        "inspect/funnel.py",
        "x > -math.inf",
        "x >= -math.inf",
        "test_sampling.py::test_the_funnel_only_narrows[numpy]",
    ),
    mutant(
        "the funnel shows top-p's logits before it",
        "sampling.py",
        'tap("top_p", keep_top_p(logits, top_p))',
        'keep_top_p(tap("top_p", logits), top_p)',
        "test_sampling.py::test_the_funnel_is_the_filters_in_their_order[numpy]",
    ),
    mutant(
        "the funnel shows the first probabilities only",
        "inspect/funnel.py",
        "softmax(x)",
        "softmax(logits)",
        "test_sampling.py::test_each_step_of_the_funnel_has_the_probabilities_of_what_is_left[numpy]",
    ),
    mutant(
        "no penalty before greedy decoding",
        "sampling.py",
        'logits = tap("repetition_penalty", penalize',
        '_ = tap("repetition_penalty", penalize',
        "test_sampling.py::test_greedy_decoding_knows_the_repetition_penalty[numpy]",
    ),
    # The loop
    mutant("the head gets the first row", "generate.py", "hidden[-rows:, :]", "hidden[:rows, :]", LONG_PROMPT),
    mutant(
        "every chunk is the first",
        "generate.py",
        "ids[start : start + PREFILL_CHUNK]",
        "ids[:PREFILL_CHUNK]",
        LONG_PROMPT,
    ),
    mutant(
        "the prompt in one piece",
        "generate.py",
        'range(cache["length"], len(ids), PREFILL_CHUNK)',
        'range(cache["length"], cache["length"] + 1)',
        LONG_PROMPT,
    ),
    mutant(
        "the tokenizer's end tokens left out",
        "text/end_ids.py",
        "ids if lm.tokenizer is None else ids | lm.tokenizer.end_ids",
        "ids",
        "test_loop.py::test_the_end_tokens_of_all_three_places_are_united",
    ),
    mutant(
        "only the first beginning of a stop string waits",
        "text/stream.py",
        "range(1, len(s))",
        "range(1, min(2, len(s)))",
        STOP,
    ),
    mutant(
        "the shortest beginning waits",
        "text/stream.py",
        "max(beginnings, default=0)",
        "min(beginnings, default=0)",
        STOP,
    ),
    mutant("text up to the last stop string", "text/stream.py", "text[: min(found)]", "text[: max(found)]", STOP),
    mutant(
        "what waits is lost at the end",
        "generate.py",
        'text, waiting = text + waiting, ""',
        'text, waiting = text, ""',
        "test_loop.py::test_what_waited_for_a_stop_string_comes_at_the_end",
    ),
    mutant(
        "an incomplete character is lost at the end",
        "generate.py",
        'text_stream.flush() if finish_reason else ""',
        '""',
        "test_loop.py::test_what_is_incomplete_comes_at_the_end",
    ),
    mutant(
        "generation goes past the context",
        "options.py",
        "return prompt + min(max_new_tokens, left)",
        "return prompt + max_new_tokens",
        "test_loop.py::test_the_context_caps_the_text_with_a_warning",
    ),
    mutant(
        "a prompt as long as the context",
        "options.py",
        "if len(ids) >= context:",
        "if len(ids) > context:",
        "test_loop.py::test_a_prompt_that_cannot_be_used_is_refused",
    ),
    mutant(
        "an id beyond the vocabulary",
        "options.py",
        "0 <= token < vocab_size",
        "0 <= token <= vocab_size",
        "test_loop.py::test_ids_are_checked_at_both_ends",
    ),
    mutant(
        "use_cache=False keeps the cache",
        "generate.py",
        "if not use_cache:",
        "if False:",
        "test_loop.py::test_without_the_cache_a_step_computes_the_whole_text",
    ),
    mutant(
        "the seed is ignored",
        "generate.py",
        "np.random.default_rng(seed)",
        "np.random.default_rng()",
        "test_loop.py::test_the_same_seed_gives_the_same_text_on_every_library[numpy]",
    ),
    mutant("NaN is a token", "generate.py", "if not math.isfinite(largest):", "if False:", NOT_FINITE),
    mutant(
        "the penalty forgets the new tokens",
        "generate.py",
        "np.isin(np.arange(logits.shape[0]), ids)",
        "np.isin(np.arange(logits.shape[0]), ids[:3])",
        "test_loop.py::test_the_repetition_penalty_counts_the_prompt_and_the_new_tokens",
    ),
    # The pipeline
    mutant(
        "the prompt is always part of the text",
        "apps/pipeline.py",
        "if return_full_text:",
        "if True:",
        "test_pipeline.py::test_the_call_of_the_chapter",
    ),
    mutant(
        "defaults before generation_config.json",
        "apps/pipeline.py",
        "DEFAULTS | settings(lm) | options",
        "settings(lm) | DEFAULTS | options",
        "test_pipeline.py::test_generation_config_comes_before_the_defaults_and_an_option_before_both",
    ),
    mutant(
        "generation_config.json before an option",
        "apps/pipeline.py",
        "DEFAULTS | settings(lm) | options",
        "DEFAULTS | options | settings(lm)",
        "test_pipeline.py::test_generation_config_comes_before_the_defaults_and_an_option_before_both",
    ),
    mutant(
        "draws without do_sample",
        "apps/pipeline.py",
        'how["temperature"] = 0.0',
        'how["min_p"] = 0.0',
        "test_pipeline.py::test_the_defaults_are_transformers_but_greedy",
    ),
    mutant(
        "one seed for all continuations",
        "apps/pipeline.py",
        "else seed + i",
        "else seed",
        "test_pipeline.py::test_several_continuations_are_each_drawn_anew",
    ),
    mutant(
        "an option of the call stays",
        "apps/pipeline.py",
        "**(options | changes)",
        "**(options.update(changes) or options)",
        "test_pipeline.py::test_an_option_of_the_call_holds_for_that_call",
    ),
    mutant(
        "an option of the call is ignored",
        "apps/pipeline.py",
        "**(options | changes)",
        "**(changes | options)",
        "test_pipeline.py::test_an_option_of_the_call_holds_for_that_call",
    ),
    mutant(
        "the assistant's turn without the conversation",
        "apps/pipeline.py",
        "[*prompt, {",
        "[{",
        "test_pipeline.py::test_a_conversation_gets_the_assistants_turn[talk]",
    ),
    # Timing
    mutant(
        "an end token of generation_config.json ends a run",
        "apps/bench.py",
        "config=config, generation_config={}, ",
        "config=config, ",
        "test_bench.py::test_end_tokens_do_not_end_a_run",
    ),
    mutant(
        "passes counted as streams",
        "apps/bench.py",
        "sum(widths)",
        "len(widths)",
        "test_bench.py::test_both_sides_make_the_same_tokens_in_turn_and_their_streams_are_counted",
    ),
    mutant(
        "both sides with the cache",
        "apps/bench.py",
        "use_cache=use_cache).ids",
        "use_cache=True).ids",
        "test_bench.py::test_both_sides_make_the_same_tokens_in_turn_and_their_streams_are_counted",
    ),
    mutant(
        "standard deviation of all runs that could have been",
        "apps/bench.py",
        "pstdev",
        "stdev",
        "test_bench.py::test_the_figures_are_those_of_the_runs",
    ),
    mutant(
        "only the first pair of runs compared",
        "apps/bench.py",
        "run.ids) for run in runs)",
        "run.ids) for run in runs[:2])",
        "test_bench.py::test_a_run_that_made_other_tokens_is_noticed",
    ),
    mutant(
        "other tokens are no difference",
        "cli/bench.py",
        'if result["same_ids"] == result["new_tokens"]:',
        'if result["same_ids"] <= result["new_tokens"]:',
        "test_cli.py::test_bench_cache_says_so_if_the_tokens_differ",
    ),
    # Leaving out a layer's network
    mutant(
        "always the first layer left out",
        "apps/ablate.py",
        'f"layers.{layer}.{part}.output"',
        'f"layers.0.{part}.output"',
        "test_ablate.py::test_it_is_the_model_with_that_projection_zeroed",
    ),
    mutant(
        "always the feed-forward network left out",
        "apps/ablate.py",
        'f"layers.{layer}.{part}.output"',
        'f"layers.{layer}.feedforward.output"',
        "test_ablate.py::test_it_is_the_model_with_that_projection_zeroed",
    ),
    mutant(
        "the token after the first one",
        "apps/ablate.py",
        "softmax(logits[-1, :])",
        "softmax(logits[0, :])",
        "test_ablate.py::test_it_is_the_model_with_that_projection_zeroed",
    ),
    # Traces, patches, comparing, evaluating
    mutant(
        "a trace in no order",
        "inspect/trace.py",
        '"names": json.dumps(list(arrays))',
        '"names": json.dumps(sorted(arrays))',
        "test_trace.py::test_what_is_written_is_read_again_in_its_order",
    ),
    mutant(
        "numbers of a trace not aligned",
        "inspect/trace.py",
        'b" " * (-len(header) % 8)',
        'b" " * (1 - len(header) % 2)',
        "test_trace.py::test_the_safetensors_library_reads_it_too",
    ),
    mutant(
        "values of different tokens in one trace",
        "inspect/trace.py",
        "if len(tokens) != 1:",
        "if False:",
        "test_trace.py::test_a_safetensors_file_that_is_no_trace",
    ),
    mutant(
        "names that a terminal obeys",
        "inspect/trace.py",
        "if not name.isprintable()",
        "if not name",
        "test_trace.py::test_a_safetensors_file_that_is_no_trace",
    ),
    mutant(
        "recorded before the change",
        "inspect/trace.py",
        "        value = tap(name, value)\n",
        "        tap(name, value)\n",
        "test_trace.py::test_a_tap_comes_before_what_is_kept_and_sees_each_value_once",
    ),
    mutant(
        "a patch of another shape",
        "inspect/patch.py",
        "if shape is None or tuple(shape) != tuple(value.shape):",
        "if shape is None:",
        "test_patch.py::test_a_wrong_shape_names_the_value_and_both_shapes",
    ),
    mutant(
        "a patch of a name that no value has",
        "inspect/patch.py",
        'if name in ("norm", "logits"):',
        "if False:",
        "test_patch.py::test_a_name_that_no_value_has_is_an_error_at_the_end_of_the_pass",
    ),
    mutant(
        "a patch writes into the pass's own value",
        "inspect/patch.py",
        "change(xp.asarray(value, copy=True))",
        "change(value)",
        "test_patch.py::test_a_function_may_write_into_what_it_gets[numpy]",
    ),
    mutant(
        "a patch widens the pass",
        "inspect/patch.py",
        "xp.asarray(new, dtype=value.dtype, device=device(value))",
        "xp.asarray(new, device=device(value))",
        "test_patch.py::test_a_wider_dtype_does_not_spread",
    ),
    mutant(
        "the last change only",
        "inspect/patch.py",
        "value = changed(name, value, change)",
        "value = changed(name, value, list(changes.values())[-1])",
        "test_patch.py::test_a_pattern_changes_all_that_it_names_and_changes_follow_each_other",
    ),
    mutant(
        "the tolerance goes by B",
        "inspect/compare.py",
        "error > allowed(x, tolerance, largest)",
        "error > allowed(y, tolerance, largest)",
        "test_compare.py::test_a_measures_b_and_not_the_other_way_round",
    ),
    mutant(
        "the largest of a piece only",
        "inspect/compare.py",
        "largest = max(largest, float(",
        "largest = min(math.inf, float(",
        "test_compare.py::test_what_is_compared_piece_by_piece_is_one_value",
    ),
    mutant(
        "NaN agrees with all",
        "inspect/compare.py",
        "wrong = np.where(both, error > allowed(x, tolerance, largest), x != y)",
        "wrong = error > allowed(x, tolerance, largest)",
        "test_compare.py::test_nan_agrees_with_nothing_and_is_counted",
    ),
    mutant(
        "the last step beyond is the first",
        "inspect/compare.py",
        "(row for row in rows if row.beyond)",
        "(row for row in reversed(rows) if row.beyond)",
        "test_compare.py::test_the_first_step_that_differs_is_named_whichever_it_is",
    ),
    mutant(
        "the place of a piece forgotten",
        "inspect/compare.py",
        "first = span.start + int(np.argmax(wrong))",
        "first = int(np.argmax(wrong))",
        "test_compare.py::test_what_is_compared_piece_by_piece_is_one_value",
    ),
    mutant(
        "hidden scores compared",
        "inspect/compare.py",
        'seen_scores(name, a, b) if name.endswith(".scores") else None',
        "None",
        "test_compare.py::test_scores_that_the_mask_hides_are_of_no_consequence",
    ),
    mutant(
        "own score not compared",
        "inspect/compare.py",
        "np.tri(new, length, length - new, dtype=np.bool_)",
        "np.tri(new, length, length - new - 1, dtype=np.bool_)",
        "test_compare.py::test_scores_that_the_mask_hides_are_of_no_consequence",
    ),
    mutant(
        "a cached side forgets its last token",
        "inspect/runs.py",
        "return [tokens - 1, 1] if tokens > 1 else [tokens]",
        "return [tokens]",
        "test_compare.py::test_the_passes_of_a_run",
    ),
    mutant(
        "traces of other ids",
        "inspect/runs.py",
        "and a.ids != b.ids:",
        "and False:",
        "test_compare.py::test_other_ids_and_other_lengths_are_refused",
    ),
    mutant(
        "compare says yes to all",
        "cli/compare.py",
        "return 0 if first is None else 1",
        "return 0",
        "test_cli_compare.py::test_two_files_that_differ",
    ),
    mutant(
        "a token scored twice",
        "apps/evaluate.py",
        "[1, *ends[:-1]]",
        "[begin + 1 for begin in begins]",
        "test_evaluate.py::test_each_token_but_the_first_is_scored_once_with_as_much_before_it_as_any_window_has",
    ),
    mutant(
        "a token predicted by itself",
        "apps/evaluate.py",
        "hidden[scored - 1 - begin : end - 1 - begin, :]",
        "hidden[scored - begin : end - begin, :]",
        "test_evaluate.py::test_losses_are_the_loop",
    ),
    mutant(
        "divergence from the model to the reference",
        "apps/evaluate.py",
        "divergence(theirs, model)",
        "divergence(model, theirs)",
        "test_evaluate.py::test_divergences_are_the_loop",
    ),
    mutant(
        "bits are nats",
        "apps/evaluate.py",
        "float(np.sum(scores.losses)) / math.log(2) / text_bytes",
        "float(np.sum(scores.losses)) / text_bytes",
        "test_evaluate.py::test_summary_is_what_its_names_say",
    ),
    mutant(
        "the reference is rounded as the model is",
        "cli/evaluate.py",
        '"dtype": "auto", "revision": None}',
        '"revision": None}',
        "test_cli_compare.py::test_a_reference_keeps_its_own_dtype",
    ),
    # Looking inside: inspect
    mutant(
        "the lens forgets the final norm",
        "inspect/lens.py",
        "return lm_head(rms_norm(residual, weights.norm, config.rms_norm_eps), weights)",
        "return lm_head(residual, weights)",
        LENS,
    ),
    mutant(
        "the lens forgets LayerNorm's bias",
        "inspect/lens.py",
        "layer_norm(residual, weights.norm, weights.norm_bias, config",
        "layer_norm(residual, weights.norm, 0 * weights.norm_bias, config",
        LENS,
    ),
    mutant(
        "the likeliest token again and again",
        "inspect/lens.py",
        "np.put_along_axis(left, ids[-1], -np.inf, axis=-1)",
        "pass",
        "test_inspect.py::test_the_likeliest_are_those_that_sorting_finds",
    ),
    mutant(
        "a token judged by the logits after it",
        "inspect/look.py",
        "before, follows = seen.logits[:-1],",
        "before, follows = seen.logits[1:],",
        "test_inspect.py::test_each_token_has_the_probability_that_the_tokens_before_it_give",
    ),
    mutant(
        "ranks begin with 0",
        "inspect/look.py",
        "ranks = 1 + np.count_nonzero",
        "ranks = np.count_nonzero",
        "test_inspect.py::test_each_token_has_the_probability_that_the_tokens_before_it_give",
    ),
    mutant(
        "the lens asks for the token itself",
        "inspect/look.py",
        "np.asarray([*seen.ids[1:], 0])",
        "np.asarray(seen.ids)",
        "test_inspect.py::test_the_lens_goes_from_the_embedding_to_the_models_own_logits",
    ),
    mutant(
        "a length without its root",
        "inspect/look.py",
        "np.linalg.norm(seen.values[name].astype(np.float64), axis=-1)",
        "np.square(seen.values[name].astype(np.float64)).sum(axis=-1)",
        "test_inspect.py::test_norms_are_the_lengths_of_what_is_added_and_of_the_sum",
    ),
    mutant("softmax costs a sum less", "inspect/cost.py", "T * N * (4 * S - 1)", "T * N * (3 * S - 1)", COSTS),
    mutant("the cached keys cost nothing", "inspect/cost.py", "T * N * H + 2 * T * S", "T * N * H + 2 * T * T", COSTS),
    mutant("keys and values have the queries' heads", "inspect/cost.py", "(N + 2 * K) * H)", "3 * N * H)", COSTS),
    mutant("a bias is free", "inspect/cost.py", "(2 * wide_in + biased)", "(2 * wide_in)", COSTS),
    mutant(
        "GELU costs what SwiGLU does",
        "inspect/cost.py",
        "L * 9 * T * F",
        "L * 4 * T * F",
        "test_inspect.py::test_the_arithmetic_of_gpt2_is_what_a_counting_run_counts",
    ),
    mutant("the cache is read twice", "inspect/cost.py", "(config, past) // 2", "(config, past)", READS),
    mutant("all embeddings are read", "inspect/cost.py", "table.nbytes // table.shape[0] * T", "table.nbytes", READS),
    mutant(
        "a linear scale",
        "inspect/heatmap.py",
        "return 1.0 - np.log(weights) / math.log(LEAST)",
        "return weights + 0 * np.log(weights) / math.log(LEAST)",
        "test_inspect.py::test_the_heat_map_of_a_known_matrix",
    ),
    mutant(
        "the window ends before the token asked for",
        "inspect/heatmap.py",
        "range(last - room + 2, last + 1)",
        "range(last - room + 1, last)",
        "test_inspect.py::test_the_window_always_shows_the_first_token_and_the_one_asked_for",
    ),
    mutant(
        "only control characters are escaped",
        "inspect/tokens.py",
        'c if c.isprintable() else c.encode("unicode_escape")',
        'c if c >= " " else c.encode("unicode_escape")',
        "test_inspect.py::test_what_is_visible_prints_and_nothing_else",
        "test_inspect.py::test_what_prints_stays_as_it_is",
    ),
    mutant(
        "a wide character takes one column",
        "inspect/tokens.py",
        "return len(text) + wide",
        "return len(text) + 0 * wide",
        "test_reading_order.py::test_the_examples_of_a_docstring_hold[npllm.inspect.tokens.padded]",
    ),
    mutant(
        "bytes of a Llama vocabulary are its letters",
        "inspect/tokens.py",
        "return bytes.fromhex(byte[1]) if byte else",
        "return piece.encode() if byte else",
        "test_inspect.py::test_the_bytes_of_a_llama_vocabulary",
    ),
    mutant(
        "tokens reach the terminal as they are",
        "inspect/terminal.py",
        "visible(bytes.fromhex(token['bytes']))",
        "bytes.fromhex(token['bytes']).decode(errors='replace')",
        "test_inspect.py::test_nothing_in_a_text_can_command_the_terminal",
    ),
    mutant(
        "NO_COLOR is ignored",
        "inspect/terminal.py",
        'not os.environ.get("NO_COLOR")',
        "True",
        "test_inspect.py::test_colour_needs_a_terminal_and_rich_and_no_objection",
    ),
    mutant(
        "one layer too many",
        "inspect/summary.py",
        "if not 0 <= value < count:",
        "if not 0 <= value <= count:",
        "test_inspect.py::test_what_is_not_there_is_refused_with_the_range",
    ),
    mutant(
        "infinity in the JSON",
        "inspect/summary.py",
        "if math.isfinite(value) else None",
        "if not math.isnan(value) else None",
        "test_inspect.py::test_numbers_that_json_has_not_become_none",
    ),
    mutant(
        "a prompt can end its script element",
        "inspect/page.py",
        '.replace("<", "\\\\u003c")',
        "",
        "test_inspect_page.py::test_data_cannot_leave_its_element",
        "test_inspect_page.py::test_a_hostile_prompt_is_in_the_page_as_data_only",
    ),
    mutant(
        "a prompt can name a part of the template",
        "inspect/page.py",
        "lambda found: parts[found[1]], template)",
        'lambda found: parts[found[1]], template.replace("{{data}}", parts["data"]))',
        "test_inspect_page.py::test_a_hostile_prompt_is_in_the_page_as_data_only",
    ),
    mutant(
        "the policy allows what is not there",
        "inspect/page.py",
        "hashlib.sha256(text.encode())",
        "hashlib.sha256(text.strip().encode())",
        "test_inspect_page.py::test_only_the_pages_own_style_and_script_are_allowed_by_their_hashes",
    ),
    mutant(
        "attention weights without their root",
        "inspect/page.py",
        "roots = np.sqrt(np.where(known, weights, 0.0))[:, rows, keys]",
        "roots = np.where(known, weights, 0.0)[:, rows, keys]",
        "test_inspect_page.py::test_attention_rows_sum_to_1_and_are_off_by_less_than_a_two_hundredth",
    ),
    mutant(
        "a step of the cache reads one token too many",
        "inspect/page.py",
        "work(1, prompt_length + step - 1)",
        "work(1, prompt_length + step)",
        "test_inspect_page.py::test_the_steps_of_the_cache_compute_what_the_costs_say",
    ),
    mutant(
        "a page of any length",
        "inspect/page.py",
        "if len(ids) > most:",
        "if False:",
        "test_cli_inspect.py::test_a_text_that_is_too_long_for_a_page_is_refused_with_the_arithmetic",
    ),
    # Timing decode, prefill and load
    mutant(
        "the first token timed too",
        "apps/speed.py",
        "    tokens = [next(made).id]\n    started = clock()\n",
        "    started = clock()\n    tokens = [next(made).id]\n",
        "test_speed.py::test_decoding_counts_the_seconds_of_the_tokens_after_the_first",
    ),
    mutant(
        "the untimed token shares the time",
        "apps/speed.py",
        "(clock() - started) / new_tokens, tokens",
        "(clock() - started) / len(tokens), tokens",
        "test_speed.py::test_decoding_counts_the_seconds_of_the_tokens_after_the_first",
    ),
    mutant(
        "a round goes on behind the last one's tokens",
        "apps/speed.py",
        '    cache["length"] = len(ids)  # forgets what the last round added\n',
        "    ids = [*ids, 0]\n",
        "test_speed.py::test_decoding_makes_the_models_own_tokens_each_round_anew",
    ),
    mutant(
        "one token too many in the mean of what is read",
        "apps/speed.py",
        "(context, context + new_tokens - 1)",
        "(context, context + new_tokens)",
        "test_speed.py::test_what_a_token_reads_is_the_mean_over_the_tokens_that_are_timed",
    ),
    mutant(
        "the KV cache as after the first token",
        "apps/speed.py",
        "cached = (first.cache_bytes + last.cache_bytes) / 2",
        "cached = first.cache_bytes",
        "test_speed.py::test_what_a_token_reads_is_the_mean_over_the_tokens_that_are_timed",
    ),
    mutant(
        "a cache of 16 bits counted as one of 32",
        "apps/speed.py",
        "cached * BYTES[cache_dtype] / 4",
        "cached",
        "test_speed.py::test_a_cache_of_16_bits_is_filled_and_half_as_much_to_read",
    ),
    mutant(
        "all embeddings read for each token",
        "apps/speed.py",
        "total(costs(lm.config, lm.weights, 1, past))",
        "total(costs(lm.config, lm.weights, lm.config.vocab_size, past))",
        "test_speed.py::test_what_a_token_reads_is_the_mean_over_the_tokens_that_are_timed",
    ),
    mutant(
        "share of the bandwidth without the KV cache",
        "apps/speed.py",
        "(read.weights + read.kv_cache) / row",
        "read.weights / row",
        "test_speed.py::test_the_figures_of_decoding_follow_from_seconds_and_bytes",
    ),
    mutant(
        "the worst time of reading for the best",
        "apps/speed.py",
        "best = min(best, clock() - started)",
        "best = clock() - started",
        "test_speed.py::test_bandwidth_is_the_array_over_the_best_time",
    ),
    mutant(
        "numbers of a float32 array counted as bytes",
        "apps/speed.py",
        "return 4 * prod(numbers.shape) / best",
        "return prod(numbers.shape) / best",
        "test_speed.py::test_bandwidth_is_the_array_over_the_best_time",
    ),
    mutant(
        "all pairs of tokens counted, also those that nobody may see",
        "apps/speed.py",
        "min(seen, window) for window in windows",
        "min(tokens, window) for window in windows",
        "test_speed.py::test_the_products_are_those_of_a_pass_with_the_pairs_that_nobody_may_see_left_out",
    ),
    mutant(
        "sliding windows ignored in the arithmetic",
        "apps/speed.py",
        "c.window(layer) or tokens for layer",
        "tokens for layer",
        "test_speed.py::test_the_products_are_those_of_a_pass_with_the_pairs_that_nobody_may_see_left_out",
    ),
    mutant(
        "the LM head counted for every token",
        "apps/speed.py",
        "+ 2 * c.vocab_size * c.hidden_size +",
        "+ 2 * tokens * c.vocab_size * c.hidden_size +",
        "test_speed.py::test_the_products_are_those_of_a_pass_with_the_pairs_that_nobody_may_see_left_out",
    ),
    mutant(
        "the ratio of the medians for the median of the ratios",
        "apps/speed.py",
        "statistics.median(flops / s / b for s, b in zip(seconds, bare, strict=True))",
        'flops / row["median"] / statistics.median(bare)',
        "test_speed.py::test_the_figures_of_prefill_follow_from_seconds_and_operations",
    ),
    mutant(
        "tied embeddings counted twice",
        "apps/speed.py",
        "id(array): array",
        "(id(array), object()): array",
        "test_speed.py::test_a_matrix_that_is_embeddings_and_head_counts_once",
    ),
    mutant(
        "the memory of the last load, not the most",
        "apps/speed.py",
        "max(known) if known else None",
        "known[-1] if known else None",
        "test_speed.py::test_of_several_loads_the_median_and_the_most_memory_count",
    ),
    mutant(
        "what was loaded is still held when they come one after the other",
        "cli/bench.py",
        "    except NotEnoughMemoryError:\n",
        "    except NotEnoughMemoryError as error:\n        args.held = error\n",
        "test_cli_bench.py::test_where_not_all_fit_they_come_one_after_the_other[by the caches]",
    ),
    # Speculation and the 16-bit KV cache
    mutant(
        "a refused draft goes on",
        "apps/speculation.py",
        "if token != guess:",
        "if False:",
        SPECULATION,
    ),
    mutant(
        "the cache keeps what was refused",
        "apps/speculation.py",
        'cache["length"] = len(ids) - 1',
        'cache["length"] += 0',
        "test_speculation.py::test_with_each_step_the_cache_holds_all_but_the_last_token[lookup-greedy]",
    ),
    mutant(
        "the first place and not the last",
        "apps/speculation.py",
        "range(len(ids) - size - 1, -1, -1)",
        "range(len(ids) - size)",
        LOOKUP,
    ),
    mutant(
        "the last tokens found in themselves",
        "apps/speculation.py",
        "range(len(ids) - size - 1, -1, -1)",
        "range(len(ids) - size, -1, -1)",
        LOOKUP,
    ),
    mutant(
        "more drafted than there is room for",
        "apps/speculation.py",
        "- len(ids) - 1  # room",
        "- len(ids) + 1  # room",
        "test_speculation.py::test_the_context_caps_the_draft",
    ),
    mutant(
        "likely drafts are refused",
        "apps/speculation.py",
        "random.random() * float(q[guess]) < float(p[guess])",
        "random.random() * float(p[guess]) < float(q[guess])",
        DRAWN,
    ),
    mutant("a refused draft is drawn again", "apps/speculation.py", "xp.maximum(p - q, 0.0)", "p", DRAWN),
    mutant(
        "the penalty forgets what was drafted",
        "apps/speculation.py",
        "next_logits(small, text, cache)[0, :], text,",
        "next_logits(small, text, cache)[0, :], ids,",
        "test_speculation.py::test_a_text_has_the_drafts_own_probabilities_in_mind",
    ),
    mutant(
        "the draft model takes another text for this one",
        "apps/speculation.py",
        "min(common_prefix(held, ids), len(ids) - 1)",
        'min(cache["length"], len(ids) - 1)',
        "test_speculation.py::test_a_draft_model_can_be_used_for_one_text_after_another",
    ),
    mutant(
        "the same tokens with other ids",
        "apps/speculation.py",
        "if theirs.get(token) != number:",
        "if token not in theirs:",
        "test_speculation.py::test_a_draft_model_with_another_vocabulary_is_refused_at_once",
    ),
    mutant(
        "drafts without a cache",
        "options.py",
        "if not allowed:",
        "if False:",
        "test_speculation.py::test_without_the_cache_there_is_nothing_to_check_a_draft_against",
    ),
    mutant(
        "attention in 16 bits",
        "cache.py",
        "xp.astype(keys, k.dtype, copy=False)",
        "keys",
        "test_cache_dtype.py::test_append_rounds_what_it_holds_and_hands_out_float32_of_it",
    ),
    mutant(
        "16 bits counted as 32",
        "cache.py",
        "* tokens * number",
        "* tokens * 4",
        "test_cache_dtype.py::test_kv_cache_bytes_are_those_of_the_cache",
    ),
    mutant(
        "scores of few rows left lying on their side",
        "attention.py",
        "(k @ grouped.mT).mT if few",
        "(k @ grouped.mT) if few",
        ATTENTION,
    ),
    # Converting and loading
    mutant(
        "the halves of a group change places",
        "checkpoint/write.py",
        "split.codes[..., :half] | (split.codes[..., half:] << 4)",
        "split.codes[..., half:] | (split.codes[..., :half] << 4)",
        "test_convert.py::test_what_lies_in_a_quantized_folder",
    ),
    mutant(
        "scales and minima change places",
        "checkpoint/quantized.py",
        "*parts[1:])",
        "*parts[:0:-1])",
        "test_convert.py::test_quantized_matrices_are_read_back_and_not_quantized_again[phi3-int4]",
    ),
    mutant(
        "what is in few bits already is quantized again",
        "checkpoint/narrow.py",
        'set(formats) == {f"{dtype}/32"}',
        "False",
        "test_convert.py::test_quantized_matrices_are_read_back_and_not_quantized_again[phi3-int8]",
    ),
    mutant(
        "GPT-2's quantized matrices taken for transposed",
        "checkpoint/gpt2.py",
        "turned = len(shape) == 2 and",
        "turned = False and",
        "test_convert.py::test_quantized_matrices_are_read_back_and_not_quantized_again[gpt2-int8]",
    ),
    mutant(
        "interleaved rows written as they lie",
        "checkpoint/write.py",
        "whole = in_order(pieces, order)",
        "whole = in_order(pieces, None)",
        "test_convert.py::test_a_gguf_file_and_a_folder_of_the_same_model_become_the_same_tensors[llama-int4]",
    ),
    mutant(
        "interleaved rows read as they lie",
        "checkpoint/narrow.py",
        "if as_it_is and order is None:",
        "if as_it_is:",
        "test_convert.py::test_a_gguf_file_and_a_folder_of_the_same_model_become_the_same_tensors[llama-bfloat16]",
    ),
    mutant(
        "negative infinities and NaN pass",
        "storage/stored.py",
        "largest < infinity and largest_negative < infinity + (1 << bits - 1)",
        "largest < infinity",
        "test_convert.py::test_finite_is_what_numpy_calls_finite[bfloat16]",
    ),
    mutant(
        "infinity passes, NaN does not",
        "storage/stored.py",
        "largest < infinity and",
        "largest <= infinity and",
        "test_convert.py::test_finite_is_what_numpy_calls_finite[float16]",
    ),
    mutant(
        "all is read ahead, whatever there is room for",
        "storage/stored.py",
        "if len(queue) > waiting:",
        "if len(queue) > 50 + waiting:",
        "test_convert.py::test_reading_ahead_keeps_the_order_and_does_not_run_away",
    ),
    mutant(
        "what waits is read although nobody wants it",
        "storage/stored.py",
        "pool.shutdown(cancel_futures=True)",
        "pool.shutdown()",
        "test_convert.py::test_nothing_is_begun_after_closing",
    ),
    mutant(
        "config.json written early",
        "checkpoint/write.py",
        "for name, text in texts.items():",
        "for name, text in sorted(texts.items()):",
        "test_convert.py::test_config_json_comes_last_and_every_file_is_on_the_disk_first",
    ),
    mutant(
        "half a folder stays behind",
        "checkpoint/write.py",
        "shutil.rmtree(part, ignore_errors=True)",
        "pass",
        "test_convert.py::test_a_write_that_fails_leaves_nothing",
    ),
    mutant(
        "shards one tensor short",
        "checkpoint/write.py",
        "output.nbytes > most",
        "output.nbytes >= most",
        "test_convert.py::test_shards_are_in_order_and_no_larger_than_they_may_be",
    ),
    mutant(
        "an unaligned header",
        "checkpoint/write.py",
        "(-len(text) % 8)",
        "(-len(text) % 1)",
        "test_convert.py::test_the_header_is_as_the_format_says",
    ),
    mutant(
        "Llama 3's scaling with another upper border",
        "checkpoint/gguf_config.py",
        '"high_freq_factor": 4.0',
        '"high_freq_factor": 3.0',
        "test_convert.py::test_the_scaling_of_llama_3_gets_its_name_back",
    ),
    mutant(
        "what was quantized still said of plain numbers",
        "checkpoint/write.py",
        '"torch_dtype", "quantization_config", "auto_map"',
        '"torch_dtype", "auto_map"',
        "test_convert.py::test_a_quantized_folder_can_be_converted_on[float32]",
    ),
    # The second block, and what its kernels are defined as
    mutant(
        "a rolled-back cache does not set the device's counter back",
        "cuda/block.py",
        "if self.expected != past:",
        "if self.expected < 0:",
        "test_kernels.py::test_forgetting_tokens_sets_the_counter_back",
    ),
    mutant(
        "an interrupted step is taken for a whole one",
        "cuda/block.py",
        "        self.expected = -1\n        if self.graph",
        "        self.expected = past\n        if self.graph",
        "test_kernels.py::test_the_steps_after_an_interrupted_one_are_right",
    ),
    mutant(
        "a grown cache keeps the captured step",
        "cuda/block.py",
        "self.weights is weights and all(mine is theirs for mine, theirs in pairs)",
        "self.weights is weights",
        "test_kernels.py::test_another_cache_or_a_grown_one_is_captured_anew",
    ),
    mutant(
        "a step returns the buffer that the next one writes to",
        "cuda/block.py",
        "xp.asarray(self.hidden, copy=True)[None, :]",
        "self.hidden[None, :]",
        "test_kernels.py::test_each_step_returns_memory_of_its_own",
    ),
    mutant(
        "kernels write behind the cache",
        "cuda/block.py",
        "if past >= capacity:",
        "if past > capacity:",
        "test_kernels.py::test_a_full_cache_is_refused[whole_pass0]",
    ),
    mutant(
        "a tap gets nothing to see",
        "cuda/block.py",
        "or options or tap is not untapped or attention not in KNOWN",
        "or options or attention not in KNOWN",
        "test_kernels.py::test_whoever_looks_inside_or_changes_a_part_gets_the_plain_functions[tap]",
    ),
    mutant(
        "the second block ignores the mask",
        "cuda/block.py",
        "None if visible is None else xp.reshape(visible, (past + 1,)),",
        "None,",
        "test_kernels.py::test_the_second_block_heeds_its_arguments[visible]",
    ),
    mutant(
        "a captured step has no window",
        "cuda/block.py",
        "config.window(layer), None",
        "None, None",
        "test_kernels.py::test_the_second_block_is_the_block[numpy]",
    ),
    mutant(
        "a step that was interrupted at the LM head has logits of the one before",
        "cuda/block.py",
        "self.head.made = None  # until",
        "pass  # until",
        "test_kernels.py::test_after_an_interrupted_step_the_logits_are_right[matvec-7]",
    ),
    mutant(
        "the logits that a step made are handed out, and the next one writes to them",
        "cuda/block.py",
        "self.functions.recall(x2d[0, :], self.weight, *made, y[0, :])",
        "y = made[1][None, :]",
        "test_kernels.py::test_logits_that_are_kept_stay_as_they_are",
    ),
    mutant(
        "the LM head is multiplied again behind the step",
        "cuda/block.py",
        "self.head.made = (self.hidden, self.logits)",
        "self.head.made = (self.x, self.logits)",
        "test_kernels.py::test_the_head_is_multiplied_once_for_a_token_and_in_the_step[True]",
    ),
    mutant(
        "another vector gets the logits of the last step",
        "cuda/twins.py",
        "if array_namespace(x).all(x == known):",
        "if x.shape == known.shape:",
        "test_kernels.py::test_a_vector_that_was_changed_in_place_gets_logits_of_its_own[3]",
        "test_kernels.py::test_two_texts_that_take_turns_get_logits_of_their_own",
    ),
    mutant(
        "blocks of a group's two halves exchanged",
        "storage/rows.py",
        "[bytes_of_groups & 15, bytes_of_groups >> 4]",
        "[bytes_of_groups >> 4, bytes_of_groups & 15]",
        "test_kernels.py::test_a_weight_laid_out_row_by_row_has_the_same_numbers[17-16-int4]",
    ),
    mutant(
        "a scale's bits taken for its value",
        "storage/rows.py",
        "(xp.astype(scale, xp.uint32) << 16).view(xp.float32)",
        "xp.astype(scale, xp.float32)",
        "test_kernels.py::test_a_weight_laid_out_row_by_row_has_the_same_numbers[17-32-int8]",
    ),
    mutant(
        "the host asked for a value on the way",
        "norm.py",
        "mean_square = xp.mean(x32 * x32, axis=-1, keepdims=True)",
        "mean_square = xp.mean(x32 * x32, axis=-1, keepdims=True) + 0.0 * float(xp.max(x32))",
        "test_purity.py::test_a_pass_never_asks_for_a_value",
    ),
    mutant(
        "a weight product of three axes",
        "linear.py",
        "        return x2d @ weight.T\n",
        "        return (x2d[None, :, :] @ weight.T[None, :, :])[0, :, :]\n",
        "test_purity.py::test_products_with_weights_are_of_two_matrices",
    ),
    mutant(
        "a weight product by einsum",
        "linear.py",
        "        return x2d @ weight.T\n",
        '        return array_namespace(x2d).einsum("td,fd->tf", x2d, weight)\n',
        "test_purity.py::test_products_with_weights_are_of_two_matrices",
    ),
    mutant(
        "an array made on the default device",
        "masks.py",
        "keys = xp.arange(total, device=device(like))",
        "keys = xp.arange(total)",
        "test_purity.py::test_a_pass_never_asks_for_a_value",
    ),
    mutant(
        "the ids of a prompt not checked",
        "options.py",
        "        )\n    check_ids(ids, config.vocab_size)",
        "        )",
        "test_loop.py::test_a_prompt_that_cannot_be_used_is_refused",
    ),
    mutant(
        "the buffers for a GPU not waited for",
        "devices/transfer.py",
        "                    self.read[self.turn].synchronize()\n",
        "",
        "test_transfer.py::test_a_buffer_is_written_to_only_after_it_was_read",
    ),
    mutant(
        "the same buffer all the time",
        "devices/transfer.py",
        "self.turn = 1 - self.turn",
        "self.turn = 0",
        "test_transfer.py::test_while_one_buffer_is_read_the_other_is_filled",
    ),
    mutant(
        "float16's limit taken for its largest number's",
        "devices/transfer.py",
        "FLOAT16_OVERFLOW = 65520.0",
        "FLOAT16_OVERFLOW = 65536.0",
        "test_transfer.py::test_from_65520_on_float16_overflows",
    ),
    mutant(
        "a CUDA device that does not work taken for the CPU",
        "devices/device.py",
        '    return Device(f"cuda:{index}", working_cupy(index))',
        '    try:\n        return Device(f"cuda:{index}", working_cupy(index))\n    except NpllmError:\n'
        '        return Device("cpu", np)',
        "test_devices.py::test_cuda_without_cupy",
    ),
    # Matrices by columns
    mutant(
        "the columns looked up for the rows",
        "storage/packed.py",
        "return self.columns[:, ids].T",
        "return self.columns.T[: len(ids)]",
        "test_packed.py::test_short_rows_are_kept_by_columns_and_give_the_same",
    ),
    mutant(
        "positions kept by columns, which take copies at every pass",
        "checkpoint/load.py",
        'ours == "embed_positions" or (',
        "False or (",
        "test_packed.py::test_what_is_only_looked_up_stays_by_rows",
    ),
    mutant(
        "a small model as narrow as its file",
        "checkpoint/load.py",
        'if dtype == "auto" and sum(',
        "if False and sum(",
        "test_packed.py::test_a_small_model_becomes_float32",
    ),
]


def copy_of_the_repository(folder: Path) -> Path:
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "golden"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def start_tests(folder: Path, tests: Iterable[str]) -> int:
    """A process that runs the tests in that folder; its number. What it prints goes to the folder's file "output"."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        signal.alarm(TIMEOUT)  # ends the process
        os.chdir(folder)
        output = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.path.insert(0, str(folder))
        # The plugins are imported already, without pytest's way of reading their asserts, which it would warn of.
        # And without setup.cfg's options: checking every shape takes longer than the tests.
        options = ["-o", "addopts=", "--import-mode=importlib", "-x", "-q", "-p", "no:cacheprovider"]
        options += ["-p", "no:xdist", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        code = importlib.import_module("pytest").main([*options, *(f"tests/{test}" for test in tests)])
    finally:  # whatever happened, this process must not go on with what its parent was doing
        if error := sys.exc_info()[1]:
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def plant(mutant: Mutant, folder: Path) -> str:
    """Put the bug into the copy; what stands in the way, or ""."""
    path = folder / "npllm" / mutant.file
    source = path.read_text(encoding="utf-8")
    if source.count(mutant.old) != 1:
        return f"OUTDATED: {mutant.old!r} occurs {source.count(mutant.old)} times in {mutant.file}"
    path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
    return ""


def verdict(status: int, folder: Path) -> str:
    """ "killed", or what happened instead."""
    code = os.waitstatus_to_exitcode(status)
    if code == 1:  # tests failed; any other error is not what a mutant is there for
        return "killed"
    return "SURVIVED" if code == 0 else f"BROKEN: pytest ended with {code}\n{(folder / 'output').read_text()[-2000:]}"


def judge(mutants: Iterable[Mutant], folders: Iterable[Path]) -> Iterator[tuple[Mutant, str]]:
    """Each mutant with its verdict, as they come; one at a time in each folder."""
    free, running = list(folders), {}
    waiting = list(reversed(list(mutants)))
    while waiting or running:
        if waiting and free:
            mutant, folder = waiting.pop(), free.pop()
            if problem := plant(mutant, folder):
                free.append(folder)
                yield mutant, problem
            else:
                running[start_tests(folder, mutant.tests)] = mutant, folder
            continue
        process, status = os.wait()
        mutant, folder = running.pop(process)
        shutil.copy(ROOT / "npllm" / mutant.file, folder / "npllm" / mutant.file)
        free.append(folder)
        yield mutant, verdict(status, folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", metavar="WORD", default="", help="only mutants with this word in file or description")
    word = parser.parse_args().k.lower()
    chosen = [mutant for mutant in MUTANTS if word in f"{mutant.file} {mutant.bug}".lower()]
    began = time.monotonic()
    os.environ.update(SETTINGS)
    for name in IMPORTED.split():
        importlib.import_module(name)

    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary, str(number)) for number in range(WORKERS)]
        for folder in folders:
            folder.mkdir()
            copy_of_the_repository(folder)

        start_tests(folders[0], sorted({test for mutant in chosen for test in mutant.tests}))
        _, status = os.wait()
        if status:
            print(f"{(folders[0] / 'output').read_text()}\nThe tests must pass without a mutant.")
            return 1

        verdicts = []
        for mutant, result in judge(chosen, folders):
            print(f"{mutant.file:20}{mutant.bug:52}{result}", flush=True)
            verdicts.append(result)

    killed = verdicts.count("killed")
    print(f"\n{killed} of {len(chosen)} mutants killed in {time.monotonic() - began:.0f} s")
    return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
