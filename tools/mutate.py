"""Do the tests notice a bug? One-line bugs ("mutants"), each with the tests that must fail because of it.

    python tools/mutate.py              all of them
    python tools/mutate.py -k rope      those with "rope" in their file or description

Each mutant changes one place of npllm/, in a copy of the repository and never in the repository itself; then only the
tests named with it are run. Those tests must pass without any mutant. Prints a table, and exits with 1 if a mutant
survives, that is, if its tests pass.

A new convention in the code (an order, a sign, a boundary) deserves a line here.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
COPIED = ("npllm", "tests", "setup.cfg", "README.md")
WORKERS = 2


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
ATTENTION = "test_attention.py::test_it_is_the_loop[numpy]"
SWIGLU = "test_feedforward.py::test_swiglu_is_the_loop[numpy]"
BLOCK = "test_block.py::test_it_is_the_loop[numpy]"
MODEL = "test_model.py::test_it_is_the_loop[numpy]"
CHUNKED = "test_model.py::test_chunked_equals_whole"
LONG_PROMPT = "test_generate.py::test_a_long_prompt_goes_through_in_chunks_of_512_tokens"
STOP = "test_generate.py::test_a_stop_string_never_leaks"
NOT_FINITE = "test_generate.py::test_logits_that_are_not_finite_are_refused[numpy-greedy-nan]"

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
        "test_rope.py::test_partial_rotary_passes_the_rest",
    ),
    mutant(
        "linear scaling multiplied",
        "rope.py",
        'return frequencies / scaling["factor"]',
        'return frequencies * scaling["factor"]',
        "test_rope.py::test_linear_scaling_divides_the_positions",
    ),
    mutant(
        "llama3 scaling slows the wrong pairs",
        "rope.py",
        'kept * frequencies + (1.0 - kept) * frequencies / scaling["factor"]',
        '(1.0 - kept) * frequencies + kept * frequencies / scaling["factor"]',
        "test_rope.py::test_llama3_scaling_keeps_high_frequencies_and_divides_low_ones",
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
    mutant("weight ignored", "norm.py", "copy=False) * weight", "copy=False)", NORM),
    mutant(
        "squares in float16",
        "norm.py",
        "x32 = xp.astype(x, xp.float32, copy=False)",
        "x32 = x",
        "test_norm.py::test_squares_of_float16_do_not_overflow[numpy]",
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
        "return xp.reshape(grouped @ k.mT, (*batch, heads, new, length))",
        "return q / math.sqrt(width) @ xp.concat([k] * (heads // kv_heads), axis=-3).mT",
        "test_attention.py::test_neighbouring_query_heads_share_a_key_head",
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
        "x = xp.moveaxis(x, -3, -2)",
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
        "return keys[..., :total, :], values[..., :total, :]",
        "return keys[..., :total, :] + 0.0, values[..., :total, :] + 0.0",
        "test_cache.py::test_decoding_hands_the_cache_itself_to_attention_and_never_a_copy",
    ),
    mutant(
        "all slots handed out, empty ones too",
        "cache.py",
        "return keys[..., :total, :], values[..., :total, :]",
        "return keys, values",
        CHUNKED,
    ),
    mutant(
        "grow forgets what is held",
        "cache.py",
        'new[..., : cache["length"], :] = old[..., : cache["length"], :]',
        "new[..., :0, :] = old[..., :0, :]",
        "test_cache.py::test_grow_keeps_what_is_held_and_makes_room",
    ),
    mutant(
        "capacity not checked",
        "cache.py",
        "if total > keys.shape[-2]:",
        "if False:",
        "test_cache.py::test_a_full_cache_refuses_more",
    ),
    # The block
    mutant("residual around attention missing", "block.py", "x = x + self_attention(", "x = self_attention(", BLOCK),
    mutant("residual around the network missing", "block.py", "x = x + feedforward(", "x = feedforward(", BLOCK),
    mutant(
        "second norm of the first norm's result",
        "block.py",
        "rms_norm(x, weights.post_attention_layernorm",
        "rms_norm(normed, weights.post_attention_layernorm",
        "test_block.py::test_the_feedforward_network_sees_what_attention_has_added",
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
        "test_block.py::test_the_norms_stand_before_the_layers_so_a_longer_input_adds_the_same",
    ),
    mutant(
        "post-norm instead of pre-norm",
        "block.py",
        'x = x + feedforward(normed, weights, tap=under(tap, "feedforward"))',
        "x = rms_norm(x + feedforward(x, weights), weights.post_attention_layernorm, config.rms_norm_eps)",
        "test_block.py::test_with_projections_of_zero_the_residual_stream_passes_unchanged",
    ),
    mutant(
        "keys not rotated",
        "block.py",
        'tap("k_rotated", apply_rope(k, cos, sin))',
        'tap("k_rotated", k)',
        "test_model.py::test_only_the_distance_of_positions_matters",
    ),
    mutant(
        "the pass goes on without what the tap returned",
        "block.py",
        'x = tap("residual_after_attention", x)',
        'tap("residual_after_attention", x)',
        "test_tap.py::test_a_tap_that_returns_another_value_changes_the_result[layers.0.residual_after_attention]",
    ),
    # The whole pass
    mutant("length not advanced", "model.py", 'cache["length"] = past + new', 'cache["length"] = past', CHUNKED),
    mutant(
        "length advanced before the blocks",
        "model.py",
        'x = tap("embedding", embed(ids, weights.embed_tokens))',
        'x = tap("embedding", embed(ids, weights.embed_tokens)); (cache or {}).update(length=past + new)',
        "test_cache.py::test_length_moves_on_after_the_last_block_only",
    ),
    mutant(
        "positions count from 0 in every chunk",
        "model.py",
        "xp.arange(past, past + new, device=device(ids))",
        "xp.arange(0, new, device=device(ids))",
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
    mutant("every head is tied", "heads.py", "weights.lm_head)", "weights.embed_tokens)", MODEL),
    mutant(
        "hidden scores recorded as 0",
        "tap.py",
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
    # Sampling
    mutant(
        "temperature ignored",
        "sampling.py",
        "return logits / temperature",
        "return logits",
        "test_sampling.py::test_temperature_divides_the_logits",
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
    # The loop
    mutant("the head gets the first row", "generate.py", "hidden[-1:, :]", "hidden[:1, :]", LONG_PROMPT),
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
        "generate.py",
        "ids if lm.tokenizer is None else ids | lm.tokenizer.end_ids",
        "ids",
        "test_generate.py::test_the_end_tokens_of_all_three_places_are_united",
    ),
    mutant(
        "only the first beginning of a stop string waits",
        "generate.py",
        "range(1, len(s))",
        "range(1, min(2, len(s)))",
        STOP,
    ),
    mutant(
        "the shortest beginning waits", "generate.py", "max(beginnings, default=0)", "min(beginnings, default=0)", STOP
    ),
    mutant("text up to the last stop string", "generate.py", "text[: min(found)]", "text[: max(found)]", STOP),
    mutant(
        "what waits is lost at the end",
        "generate.py",
        'text, waiting = text + waiting, ""',
        'text, waiting = text, ""',
        "test_generate.py::test_what_waited_for_a_stop_string_comes_at_the_end",
    ),
    mutant(
        "an incomplete character is lost at the end",
        "generate.py",
        'text_stream.flush() if finish_reason else ""',
        '""',
        "test_generate.py::test_what_is_incomplete_comes_at_the_end",
    ),
    mutant(
        "generation goes past the context",
        "generate.py",
        "max_new_tokens = context - len(ids)",
        "max_new_tokens = max_new_tokens",
        "test_generate.py::test_the_context_caps_the_text_with_a_warning",
    ),
    mutant(
        "a prompt as long as the context",
        "generate.py",
        "if len(ids) >= context:",
        "if len(ids) > context:",
        "test_generate.py::test_a_prompt_that_cannot_be_used_is_refused",
    ),
    mutant(
        "an id beyond the vocabulary",
        "generate.py",
        "0 <= token < vocab_size",
        "0 <= token <= vocab_size",
        "test_generate.py::test_ids_are_checked_at_both_ends",
    ),
    mutant(
        "use_cache=False keeps the cache",
        "generate.py",
        "if not use_cache:",
        "if False:",
        "test_generate.py::test_without_the_cache_a_step_computes_the_whole_text",
    ),
    mutant(
        "the seed is ignored",
        "generate.py",
        "np.random.default_rng(seed)",
        "np.random.default_rng()",
        "test_generate.py::test_the_same_seed_gives_the_same_text_on_every_library[numpy]",
    ),
    mutant("NaN is a token", "generate.py", "if not math.isfinite(largest):", "if False:", NOT_FINITE),
    mutant(
        "the penalty forgets the new tokens",
        "generate.py",
        "np.isin(np.arange(logits.shape[0]), ids)",
        "np.isin(np.arange(logits.shape[0]), ids[:3])",
        "test_generate.py::test_the_repetition_penalty_counts_the_prompt_and_the_new_tokens",
    ),
]


def copy_of_the_repository(folder: Path) -> Path:
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "golden"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def run_tests(folder: Path, tests: Iterable[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "HYPOTHESIS_PROFILE": "mutants",
        "PYTHONDONTWRITEBYTECODE": "1",  # a mutant of the same size and second would be taken for the file before it
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        *(f"tests/{test}" for test in tests),
    ]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def verdict(folder: Path, mutant: Mutant) -> str:
    """ "killed", or what happened instead."""
    path = folder / "npllm" / mutant.file
    source = path.read_text(encoding="utf-8")
    if source.count(mutant.old) != 1:
        return f"OUTDATED: {mutant.old!r} occurs {source.count(mutant.old)} times in {mutant.file}"
    path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        done = run_tests(folder, mutant.tests)
    finally:
        path.write_text(source, encoding="utf-8")
    if done.returncode == 1:  # tests failed; any other error is not what a mutant is there for
        return "killed"
    return "SURVIVED" if done.returncode == 0 else f"BROKEN: pytest ended with {done.returncode}\n{done.stdout[-2000:]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", metavar="WORD", default="", help="only mutants with this word in file or description")
    word = parser.parse_args().k.lower()
    chosen = [mutant for mutant in MUTANTS if word in f"{mutant.file} {mutant.bug}".lower()]
    began = time.monotonic()

    with tempfile.TemporaryDirectory() as temporary:
        folders: SimpleQueue[Path] = SimpleQueue()
        for number in range(WORKERS):
            folder = Path(temporary, str(number))
            folder.mkdir()
            folders.put(copy_of_the_repository(folder))

        done = run_tests(folder, sorted({test for mutant in chosen for test in mutant.tests}))
        if done.returncode:
            print(f"{done.stdout}{done.stderr}\nThe tests must pass without a mutant.")
            return 1

        def judge(mutant: Mutant) -> str:
            folder = folders.get()
            try:
                return verdict(folder, mutant)
            finally:
                folders.put(folder)

        with ThreadPoolExecutor(WORKERS) as pool:
            verdicts = []
            for mutant, result in zip(chosen, pool.map(judge, chosen), strict=True):
                print(f"{mutant.file:16}{mutant.bug:52}{result}", flush=True)
                verdicts.append(result)

    killed = verdicts.count("killed")
    print(f"\n{killed} of {len(chosen)} mutants killed in {time.monotonic() - began:.0f} s")
    return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
