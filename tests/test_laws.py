"""docs/laws.md: every law has an existing test, which runs on the libraries that the page lists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "laws.md").read_text(encoding="utf-8")
ROWS = [row for row in re.findall(r"^\|.*\|$", PAGE, re.MULTILINE) if not row.startswith(("| law |", "|---|"))]
LAW = re.compile(
    r"\| \S.*?(?: \*(?P<mark>not JAX|no arrays)\*)? \| \[`(?P<test>\w+)`\]\(\.\./tests/(?P<file>\w+)\.py\) \|"
)
LAWS = [match.groupdict() for row in ROWS if (match := LAW.fullmatch(row))]
NAMES = [f"{law['file']}::{law['test']}" for law in LAWS]

# The mark after a law, and the fixture in conftest.py that enforces it.
FIXTURES = {None: {"lib"}, "not JAX": {"writable_lib"}, "no arrays": set()}

# The laws that the page must list, and the tests that check them.
NEEDED = {
    "cache == no cache": "test_model::test_cache_equals_no_cache",
    "chunked == whole": "test_model::test_chunked_equals_whole",
    "batch == single": "test_model::test_batch_equals_single",
    "padded batch == single": "test_model::test_a_padded_batch_equals_its_sequences_one_by_one",
    "packed == separate": "test_packing::test_packed_equals_separate_on_every_library",
    "GQA == MHA with repeated heads": (
        "test_attention::test_grouped_query_attention_is_multi_head_attention_with_repeated_heads"
    ),
    "flash == naive": "test_flash::test_it_is_naive_attention_for_every_tile_size_and_mask",
    "sparse == masked dense": (
        "test_flash::test_sparse_attention_computes_only_the_visible_tiles_and_equals_the_masked_one"
    ),
    "window >= length == full": "test_model::test_a_window_of_the_length_or_more_is_full_attention",
    "RoPE scores depend on the offset only": (
        "test_rope::test_the_score_of_a_query_and_a_key_depends_on_their_distance_only"
    ),
    "R_m R_n == R_(m+n)": "test_rope::test_two_rotations_are_one_by_the_sum_of_their_positions",
    "theta matters": "test_rope::test_theta_matters_to_all_pairs_but_the_first_and_a_larger_one_turns_them_less",
    "softmax shift": "test_attention::test_softmax_does_not_change_when_all_scores_are_shifted",
    "softmax permutation": "test_attention::test_the_order_of_keys_and_values_does_not_matter",
    "softmax saturation": "test_attention::test_the_largest_of_saturated_scores_takes_all",
    "an all-masked row gives zeros": "test_attention::test_a_query_that_sees_nothing_gets_zeros",
    "an all-masked row gives zeros, tile by tile": "test_flash::test_a_query_that_sees_nothing_gets_zeros",
    "RMSNorm scale invariance": "test_norm::test_without_eps_the_scale_of_the_input_does_not_matter",
    "SwiGLU gate zero": "test_feedforward::test_a_gate_of_zero_lets_nothing_pass",
    "residual pass-through": "test_block::test_with_projections_of_zero_the_residual_stream_passes_unchanged",
    "no look-ahead, bit for bit": "test_model::test_no_token_looks_ahead",
    "no look-ahead, shorter prefix": "test_model::test_a_shorter_prefix_has_the_rows_that_it_has_in_the_whole",
    "top_k = 1 == greedy": "test_sampling::test_top_k_of_one_is_greedy",
    "temperature -> 0 == greedy": "test_sampling::test_a_temperature_near_zero_is_greedy",
    "top-p mass minimal": "test_sampling::test_top_p_keeps_the_fewest_tokens_that_sum_to_p",
    "seed reproducible": "test_loop::test_the_same_seed_gives_the_same_text_on_every_library",
    "encode/decode round trip": "test_tokenizer::test_decoding_the_ids_of_a_text_gives_the_text",
}


def fixtures(file: str, test: str) -> set[str]:
    """The array-library fixtures that the test takes. Fails unless the test exists."""
    tree = ast.parse((ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8"))
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == test)
    return {argument.arg for argument in function.args.args} & {"lib", "writable_lib"}


def test_every_row_of_the_page_is_a_law():
    assert len(LAWS) == len(ROWS) >= 60


def test_no_law_is_listed_twice():
    assert sorted(NAMES) == sorted(set(NAMES))


@pytest.mark.parametrize("law", LAWS, ids=NAMES)
def test_its_test_is_there_and_runs_on_the_libraries_that_the_page_says(law):
    assert fixtures(law["file"], law["test"]) == FIXTURES[law["mark"]]


@pytest.mark.parametrize("law", NEEDED)
def test_no_law_that_is_needed_is_missing(law):
    assert NEEDED[law] in NAMES


def test_the_page_explains_its_marks():
    for mark in FIXTURES.keys() - {None}:
        assert f"\n- *{mark}*: " in PAGE
