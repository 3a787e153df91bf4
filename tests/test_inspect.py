"""What there is to see in one pass: tokens, the logit lens, costs, the heat map, and what is told of them."""

import functools
import json
import math
import re

import numpy as np
import pytest
import tokenizers
from checkpoints import SPECIAL, byte_tokenizer
from default_model import needs_default_model
from hypothesis import assume, given
from hypothesis import strategies as st
from libraries import Library
from models import (
    config_keys,
    gpt2_keys,
    random_gpt2_weights,
    random_ids,
    random_weights,
    tiny_config,
    tiny_gpt2_config,
)
from tolerance import assert_close

import npllm
from npllm.cache import empty_cache, kv_cache_bytes
from npllm.checkpoint.load import load_tokenizer
from npllm.devices.device import to_host
from npllm.errors import UsageError
from npllm.inspect import look as looking
from npllm.inspect import terminal
from npllm.inspect.cost import costs, total
from npllm.inspect.heatmap import ASCII, LEAST, SHADES, bounds, characters, darkness, window
from npllm.inspect.lens import likeliest, logit_lens, shares
from npllm.inspect.look import lens, look, norms
from npllm.inspect.parts import GPT2_PARTS, PACKAGE, PARTS, part, source
from npllm.inspect.record import record
from npllm.inspect.summary import check_choice, finite, named, summary
from npllm.inspect.terminal import amount, coloured, percent, plain, report
from npllm.inspect.tokens import columns, padded, token_bytes, visible
from npllm.lm import LM
from npllm.model import forward, gpt2_transform
from npllm.sampling import softmax
from npllm.tokenizer import Tokenizer

IDS = [3, 1, 4, 1, 5]


def tiny_lm(**keys) -> LM:
    config = tiny_config(**keys)
    return LM(config, random_weights(config), None, {})


def tiny_gpt2(**keys) -> LM:
    config = tiny_gpt2_config(**keys)
    return LM(config, random_gpt2_weights(config), None, {}, gpt2_transform)


def named_lm(**keys) -> LM:
    """A tiny model with the tests' byte-level tokenizer."""
    config = tiny_config(vocab_size=len(byte_tokenizer()), **keys)
    return LM(config, random_weights(config), byte_tokenizer(), {})


TEXTS = st.lists(st.one_of(st.text(), st.sampled_from([*SPECIAL, "<|", " the", "é", "船", "🙂", "\n"]))).map("".join)


@functools.cache
def default_tokenizer() -> Tokenizer:
    return load_tokenizer(None)


# Tokens


@given(TEXTS)
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(text):
    ids = byte_tokenizer().encode(text)
    assert b"".join(token_bytes(byte_tokenizer(), ids)) == text.encode()


@needs_default_model
@given(TEXTS)
def test_the_bytes_of_the_default_models_tokens_are_the_bytes_of_the_text(text):
    ours = default_tokenizer()
    ids = ours.encode(text)
    assume(ours.decode(ids) == text)  # its vocabulary lacks some bytes
    assert b"".join(token_bytes(ours, ids)) == text.encode()


def test_the_bytes_of_a_llama_vocabulary():
    pieces = ["<unk>", "<s>", "<0x0A>", "<0xE2>", "▁the", "▁", "é", "<0x", "Ġ"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    model = tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    backend.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    )
    backend.add_special_tokens(["<s>"])
    told = dict(zip(pieces, token_bytes(Tokenizer(backend), range(len(pieces))), strict=True))
    assert told == {
        "<unk>": b"<unk>",
        "<s>": b"<s>",
        "<0x0A>": b"\n",
        "<0xE2>": b"\xe2",
        "▁the": b" the",
        "▁": b" ",
        "é": "é".encode(),
        "<0x": b"<0x",
        "Ġ": "Ġ".encode(),
    }


def test_an_id_without_a_piece_has_no_bytes():
    assert token_bytes(byte_tokenizer(), [len(byte_tokenizer()) + 5]) == [None]


@given(st.one_of(st.text(), st.binary()))
def test_what_is_visible_prints_and_nothing_else(text):
    assert visible(text).isprintable()


def test_what_prints_stays_as_it_is():
    assert visible("Paris, 東京 é") == "Paris, 東京 é"
    assert visible("\x1b[2J\x07\x9b\u202e\u200f\r\n") == r"\x1b[2J\x07\x9b\u202e\u200f\r\n"


@given(st.text().map(visible), st.integers(3, 12))
def test_padded_takes_exactly_its_columns(text, width):
    assert columns(padded(text, width)) == width


# The lens


@pytest.mark.parametrize("lm", [tiny_lm(), tiny_gpt2()], ids=["today", "gpt2"])
def test_the_lens_of_the_last_block_gives_the_logits(lm):
    seen = {}
    ids = np.asarray(IDS)
    logits, _ = npllm.forward(ids, lm, tap=record(seen))
    np.testing.assert_array_equal(
        logit_lens(seen["layers.1.residual_after_feedforward"], lm.weights, lm.config), logits
    )
    earlier = logit_lens(seen["layers.0.residual_after_feedforward"], lm.weights, lm.config)
    assert not np.allclose(earlier, logits)


def test_the_lens_is_the_same_on_every_library(lib: Library):
    lm = tiny_lm()
    x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)
    expected = logit_lens(x, lm.weights, lm.config)
    got = logit_lens(lib.array(x), lib.tree(lm.weights), lm.config)
    assert_close("lens", to_host(got), expected)


LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=9).map(np.float32).map(np.asarray)


@given(LOGITS, st.integers(1, 12))
def test_the_likeliest_are_those_that_sorting_finds(logits, k):
    by_hand = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:k]
    assert likeliest(logits, k).tolist() == by_hand
    assert_close("shares", shares(logits, np.asarray(by_hand)), softmax(logits)[by_hand])


def test_nan_among_the_logits_comes_first_and_makes_all_shares_nan():
    logits = np.array([[1.0, np.nan, 2.0], [1.0, 3.0, 2.0]], dtype=np.float32)
    assert likeliest(logits, 2).tolist() == [[1, 2], [1, 2]]
    got = shares(logits, likeliest(logits, 2))
    assert np.isnan(got[0]).all()
    assert np.isfinite(got[1]).all()


# The pass


def test_a_look_sees_every_value_of_one_pass_and_keeps_what_is_shown():
    lm = tiny_lm()
    seen, everything = look(lm, IDS), {}
    npllm.forward(np.asarray(IDS), lm, tap=record(everything))
    assert list(seen.shapes) == list(everything)
    assert seen.shapes == {name: value.shape for name, value in everything.items()}
    assert seen.values
    for name, value in seen.values.items():
        np.testing.assert_array_equal(value, everything[name])
    assert {"layers.0.attention.weights", "layers.1.attention.weights"} <= seen.values.keys()
    assert seen.not_finite == {}


def test_a_look_is_the_same_on_every_library(writable_lib: Library):
    lm = tiny_lm()
    expected = look(lm, IDS)
    seen = look(lm._replace(weights=writable_lib.tree(lm.weights)), IDS)
    assert seen.shapes == expected.shapes
    assert seen.not_finite == {}
    for name, value in expected.values.items():
        assert_close(name, seen.values[name], value)
    for got, want in zip(lens(seen, [0, 4], 2), lens(expected, [0, 4], 2), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_look_keeps_the_attention_of_one_layer_where_only_that_is_shown():
    kept = look(tiny_lm(), IDS, attention="1").values
    assert "layers.1.attention.weights" in kept
    assert "layers.0.attention.weights" not in kept


def test_each_token_has_the_probability_that_the_tokens_before_it_give():
    seen = look(tiny_lm(), IDS)
    probabilities, ranks = looking.given(seen)
    assert math.isnan(probabilities[0])
    assert ranks[0] == 0
    for position in range(1, len(IDS)):
        before = softmax(seen.logits[position - 1])
        assert_close("given", probabilities[position], before[IDS[position]])
        assert ranks[position] == sorted(before.tolist(), reverse=True).index(before[IDS[position]]) + 1


@pytest.mark.parametrize("lm", [tiny_lm(), tiny_gpt2()], ids=["today", "gpt2"])
def test_the_lens_goes_from_the_embedding_to_the_models_own_logits(lm):
    seen = look(lm, IDS)
    told = lens(seen, range(len(IDS)), 3)
    assert told.ids.shape == told.probabilities.shape == (3, 5, 3)
    np.testing.assert_array_equal(told.ids[-1], likeliest(seen.logits, 3))
    assert_close("last", told.probabilities[-1], shares(seen.logits, told.ids[-1]))
    probabilities, _ = looking.given(seen)
    assert_close("next", told.next[-1][:-1], probabilities[1:])
    assert np.isnan(told.next[:, -1]).all()
    np.testing.assert_array_equal(lens(seen, [2], 3).ids[:, 0], told.ids[:, 2])


@pytest.mark.parametrize("lm", [tiny_lm(), tiny_gpt2()], ids=["today", "gpt2"])
def test_norms_are_the_lengths_of_what_is_added_and_of_the_sum(lm):
    seen, told = look(lm, IDS), norms(look(lm, IDS))
    first = "embedding" if lm.transform is not gpt2_transform else "residual_after_embedding"
    values = {}
    npllm.forward(np.asarray(IDS), lm, tap=record(values))
    for name, got in [
        (first, told.embedding),
        ("layers.1.attention.output", told.attention[1]),
        ("layers.1.feedforward.output", told.feedforward[1]),
        ("layers.1.residual_after_feedforward", told.residual[1]),
    ]:
        assert_close(name, got, np.sqrt((values[name] ** 2).sum(axis=-1)))
    assert seen.lm is lm


@pytest.mark.parametrize("lm", [tiny_lm(), tiny_gpt2()], ids=["today", "gpt2"])
def test_every_value_of_the_pass_is_explained_and_its_line_of_the_source_found(lm):
    for name, shape in look(lm, IDS).shapes.items():
        what = part(lm, name)
        assert len(what.letters.split()) == len(shape), name
        path, line = source(what.function, what.line).split(":")
        text = (PACKAGE.parent / path).read_text(encoding="utf-8").splitlines()[int(line) - 1]
        assert what.line in text
        if not what.line:
            assert text.startswith(f"def {what.function.__name__}("), name
    assert {f for p in GPT2_PARTS.values() for f in p.figures.split(", ")} <= {f"3-{i}" for i in range(1, 34)}


def test_letters_are_the_sizes_that_the_glossary_says():
    lm = tiny_lm(num_attention_heads=4, num_key_value_heads=2)
    sizes = {"T": 5, "S": 5, "D": 8, "N": 4, "K": 2, "H": 4, "F": 6, "V": 11}
    for name, shape in look(lm, IDS).shapes.items():
        assert tuple(sizes[letter] for letter in part(lm, name).letters.split()) == shape, name
    assert PARTS["attention.k"].letters != PARTS["attention.q"].letters


class Counting(np.ndarray):
    """A NumPy array that counts the operations in which it takes part, as cost.py says they are counted."""

    flops = 0
    ARITHMETIC = (np.add, np.subtract, np.multiply, np.true_divide, np.exp, np.sqrt, np.tanh)

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **how):
        def bare(x):
            return x.view(np.ndarray) if isinstance(x, Counting) else x

        if out is not None:
            how["out"] = tuple(bare(x) for x in out)
        result = getattr(ufunc, method)(*(bare(x) for x in inputs), **how)
        if ufunc is np.matmul:
            Counting.flops += 2 * result.size * inputs[0].shape[-1]
        elif ufunc in self.ARITHMETIC and method == "reduce":
            Counting.flops += inputs[0].size - result.size
        elif ufunc in self.ARITHMETIC:
            Counting.flops += np.size(result)
        else:
            assert ufunc in (np.maximum, np.minimum, np.negative, np.greater), f"{ufunc}: does it count?"
        return np.asarray(result).view(Counting)

    def __array_function__(self, function, types, args, how):
        result = super().__array_function__(function, types, args, how)  # np.where forgets the class
        return result.view(Counting) if isinstance(result, np.ndarray) else result


# The part of cost.py that ends with each tap.
ENDS = {
    "embedding": "embedding",
    "position_embedding": "embedding",
    "residual_after_embedding": "position embedding",
    "q": "qkv_proj",
    "k": "qkv_proj",
    "v": "qkv_proj",
    "q_rotated": "RoPE",
    "k_rotated": "RoPE",
    "scores": "scores",
    "weights": "softmax",
    "mixed": "combine",
    "attention.output": "o_proj",
    "residual_after_attention": "residual",
    "gate": "gate_up_proj",
    "residual_after_feedforward": "residual",
    "norm": "norm",
    "logits": "lm_head",
}
TODAY = {
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
    "up": "gate_up_proj",
    "activation": "SwiGLU",
    "feedforward.output": "down_proj",
}
GPT2 = {
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "up": "c_fc",
    "activation": "GELU",
    "feedforward.output": "c_proj",
}


def counted(lm: LM, new: int, past: int) -> dict[str, int]:
    """The operations of a pass by parts, counted while they are done."""
    config = lm.config
    weights = Library(CountingNumpy()).tree(lm.weights)
    ids = random_ids(config, past + new)
    cache = empty_cache(config, past + new, like=np.zeros(1)) if past else None
    if past:
        lm.transform(ids[:past], lm.weights, config, cache)
    ends = ENDS | (GPT2 if lm.transform is gpt2_transform else TODAY)
    parts: dict[str, int] = {}
    Counting.flops = 0

    def tap(name, value):
        end = next(part for leaf, part in ends.items() if name == leaf or name.endswith("." + leaf))
        parts[end] = parts.get(end, 0) + Counting.flops
        Counting.flops = 0
        return value

    forward(ids[past:], weights, config, cache, tap=tap)
    return parts


class CountingNumpy:
    """Just enough of a library for `Library.tree`."""

    def asarray(self, value, device=None):
        return value.view(Counting)


@given(config_keys(), st.integers(1, 4), st.integers(0, 3), st.booleans())
def test_the_arithmetic_is_what_a_counting_run_counts(keys, new, past, biases):
    config = tiny_config(**keys)
    lm = LM(config, random_weights(config, biases=biases), None, {})
    told = {cost.part: cost.flops for cost in costs(config, lm.weights, new, past)}
    assert told == counted(lm, new, past)


@given(gpt2_keys(), st.integers(1, 4), st.integers(0, 3), st.booleans())
def test_the_arithmetic_of_gpt2_is_what_a_counting_run_counts(keys, new, past, biases):
    config = tiny_gpt2_config(**keys)
    lm = LM(config, random_gpt2_weights(config, biases=biases), None, {}, gpt2_transform)
    told = {cost.part: cost.flops for cost in costs(config, lm.weights, new, past)}
    assert told == counted(lm, new, past)


@pytest.mark.parametrize("lm", [tiny_lm(), tiny_gpt2()], ids=["today", "gpt2"])
@pytest.mark.parametrize(("new", "past"), [(1, 0), (5, 0), (1, 7)])
def test_each_weight_is_read_once_and_the_cache_whole(lm, new, past):
    weights = lm.weights
    arrays = [weights.norm, weights.norm_bias, weights.lm_head, *(array for block in weights.layers for array in block)]
    tables = [table for table in (weights.embed_tokens, weights.embed_positions) if table is not None]
    _, _, read, cached = total(costs(lm.config, weights, new, past))
    assert read == sum(array.nbytes for array in arrays if array is not None) + new * sum(t[0].nbytes for t in tables)
    assert cached == kv_cache_bytes(lm.config, past)


def test_the_head_is_asked_for_as_many_tokens_as_are_scored():
    lm = tiny_lm()
    of_all, of_one = (
        {cost.part: cost for cost in costs(lm.config, lm.weights, 5, scored=scored)} for scored in (None, 1)
    )
    assert of_all["lm_head"].flops == 5 * of_one["lm_head"].flops == 5 * 2 * 8 * 11
    assert of_all["lm_head"].weight_bytes == of_one["lm_head"].weight_bytes
    assert {**of_all, "lm_head": None} == {**of_one, "lm_head": None}


# The heat map


def test_the_heat_map_of_a_known_matrix():
    weights = np.array([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.9985, 0.001, 0.0005, 0], [0.8, 0.17, 0.03, 0.0001]])
    assert characters(weights) == ["█   ", "██  ", "█░· ", "█▓▒·"]
    assert characters(weights, ASCII) == ["@   ", "@@  ", "@:. ", "@#+."]
    assert characters(np.array([[np.nan, 1.0]])) == ["?█"]


@given(st.lists(st.floats(1e-9, 1), min_size=2, max_size=8))
def test_more_weight_is_never_a_lighter_character(weights):
    (row,) = characters(np.asarray([sorted(weights)]))
    assert [SHADES.index(c) for c in row] == sorted(SHADES.index(c) for c in row)


def test_a_character_begins_where_the_legend_says():
    for character, bound in zip(SHADES[1:], bounds()[1:], strict=True):
        assert characters(np.array([[1.0001 * bound]])) == [character]
    assert bounds()[1] == pytest.approx(LEAST)
    assert darkness(np.array([LEAST, 1.0])) == pytest.approx([0, 1])


@given(st.integers(1, 50), st.data(), st.integers(2, 20))
def test_the_window_always_shows_the_first_token_and_the_one_asked_for(tokens, data, room):
    last = data.draw(st.integers(0, tokens - 1))
    shown = list(window(tokens, last, room))
    assert len(shown) == min(tokens, room)
    assert shown == sorted(set(shown))
    assert {0, last} <= set(shown)
    assert shown[-1] < tokens


# What is told


def told_of(lm: LM, ids=IDS, layer=1, head=2, token=None, top_k=4):
    return summary(look(lm, ids, str(layer)), layer, head, len(ids) - 1 if token is None else token, top_k)


def test_the_json_holds_what_the_text_tells_with_keys_and_types_that_stay():
    seen = look(tiny_lm(), IDS)
    told = told_of(seen.lm)
    kinds = {key: type(value) for key, value in told.items()}
    assert kinds == {
        "model": dict,
        "not_finite": dict,
        "tokens": list,
        "shapes": dict,
        "token": int,
        "next": list,
        "lens": list,
        "norms": list,
        "layer": int,
        "head": int,
        "attention": list,
        "kv_cache": dict,
        "cost": dict,
    }
    assert [token["id"] for token in told["tokens"]] == IDS
    assert told["tokens"][0] == {"id": 3, "text": None, "bytes": None, "probability": None, "rank": None}
    assert told["shapes"]["layers.1.attention.weights"] == [4, 5, 5]
    assert [token["id"] for token in told["next"]] == likeliest(seen.logits[-1], 4).tolist()
    assert [row["layer"] for row in told["lens"]] == [row["layer"] for row in told["norms"]] == [None, 0, 1]
    np.testing.assert_allclose(told["attention"], seen.values["layers.1.attention.weights"][2])
    assert told["kv_cache"] == {"bytes_per_token": 2 * 2 * 2 * 4 * 4, "bytes": 5 * 2 * 2 * 2 * 4 * 4}
    assert told["cost"]["text"][-1]["part"] == "total"
    assert told["cost"]["next_token"][-1]["cache_bytes"] == told["kv_cache"]["bytes"]
    assert json.loads(json.dumps(finite(told), allow_nan=False))["layer"] == 1


def test_the_token_chosen_is_the_one_looked_at():
    told = told_of(tiny_lm(), token=2)
    seen = look(tiny_lm(), IDS)
    assert [token["id"] for token in told["next"]] == likeliest(seen.logits[2], 4).tolist()
    assert told["norms"][2]["residual"] == pytest.approx(float(norms(seen).residual[1, 2]))
    assert told["lens"][-1]["likeliest"][0]["id"] == told["next"][0]["id"]


def test_numbers_that_json_has_not_become_none():
    assert finite({"a": [math.nan, -math.inf, 0.1 + 0.2, 3, "x", None]}) == {"a": [None, None, 0.3, 3, "x", None]}


def test_a_token_that_is_no_whole_character_has_bytes_and_no_text():
    assert named(7, b"\xe2\x82") == {"id": 7, "text": None, "bytes": "e282"}
    assert named(7, " é".encode()) == {"id": 7, "text": " é", "bytes": "20c3a9"}


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"layer": 2}, "--layer: expected 0 to 1 (there are 2 layers), got 2"),
        ({"layer": -1}, "--layer: expected 0 to 1 (there are 2 layers), got -1"),
        ({"head": 4}, "--head: expected 0 to 3 (there are 4 heads), got 4"),
        ({"token": 5}, "--token: expected 0 to 4 (there are 5 tokens), got 5"),
        ({"token": -1}, "--token: expected 0 to 4 (there are 5 tokens), got -1"),
        ({"top_k": 0}, "--top-k: expected 1 to 11, the size of the vocabulary, got 0"),
        ({"top_k": 12}, "--top-k: expected 1 to 11, the size of the vocabulary, got 12"),
    ],
)
def test_what_is_not_there_is_refused_with_the_range(choice, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        check_choice(tiny_lm(), IDS, **({"layer": 0, "head": 0, "token": None, "top_k": 1} | choice))


@pytest.mark.parametrize("ids", [[], [11], list(range(10)) * 7])
def test_ids_that_no_pass_can_take_are_refused(ids):
    with pytest.raises(UsageError, match=r"prompt is empty|expected an id from 0 to 10|prompt is too long"):
        look(tiny_lm(), ids)


# The text


def text_of(lm: LM, width=100, ascii_only=False, **choice) -> str:
    return plain(report(told_of(lm, **choice), lm, width, ascii_only=ascii_only))


def test_the_text_has_every_section_and_number():
    lm = named_lm()
    text = text_of(lm, ids=lm.tokenizer.encode("a#b!"))
    for title in [
        "Tokens",
        "Shapes along the pass",
        "Next token, after token 3 '!'",
        "Logit lens: what each block would predict after token 3 '!'",
        "Attention, layer 1, head 2",
        "Norms of vectors, at token 3 '!'",
        "KV cache",
        "Cost",
    ]:
        assert f"\n{title}" in text
    assert re.search(r"1 +\d+ +'#' +23 +[\d.e-]+ % +\d+\n", text)
    assert "2 blocks, each:" in text
    assert re.search(r"attention\.k +\[2, 4, 4\] +K T H +npllm/attention\.py:\d+\n", text)
    assert "128 bytes per token" in text


def test_a_prompt_of_one_token():
    lm = named_lm()
    text = text_of(lm, ids=[40])
    assert re.search(r"\n +0 +'[^']+' +██ +100 % on 0 ", text)
    assert "\n  0  40  '" in text


def test_nothing_in_a_text_can_command_the_terminal():
    lm = named_lm()
    hostile = "\x1b[31m\x07\x9b2J\u202eabc\r"
    told = told_of(lm, ids=lm.tokenizer.encode(hostile))
    for lines in (report(told, lm, 60), report(told, lm, 60, ascii_only=True)):
        assert all(line.isprintable() for line in plain(lines).split("\n"))
    assert r"'\x1b'" in plain(report(told, lm, 60))
    styled = re.sub(r"\x1b\[[\d;]*m", "", coloured(report(told, lm, 60, colour=True)))
    assert all(line.isprintable() for line in styled.split("\n"))


def test_an_ascii_terminal_gets_ascii():
    lm = named_lm()
    assert not set(text_of(lm, ids=[40, 41, 42], ascii_only=True)) & set(SHADES.replace("·", ""))


def test_a_long_text_shows_a_part_of_the_map_that_fits():
    lm = named_lm(max_position_embeddings=128)
    ids = [40 + i % 50 for i in range(100)]
    text = text_of(lm, width=80, ids=ids, token=60)
    part_of_it = text[text.index("Attention, layer") : text.index("Norms of vectors")]
    assert "the first token and those up to 60, of 100; --token selects others" in part_of_it
    rows = re.findall(r"^ +(\d+)  '", part_of_it, flags=re.MULTILINE)
    assert [int(row) for row in rows] == list(window(100, 60, (80 - 46) // 2))


def test_nan_is_shown_and_counted():
    lm = tiny_lm()
    block = lm.weights.layers[1]
    broken = block._replace(down_proj=block.down_proj.copy())
    broken.down_proj[3, :] = np.nan
    lm = lm._replace(weights=lm.weights._replace(layers=(lm.weights.layers[0], broken)))
    told = told_of(lm)
    assert told["not_finite"]["layers.1.feedforward.output"] == 5
    assert next(iter(told["not_finite"])) == "layers.1.feedforward.output"
    text = plain(report(told, lm, 100))
    assert "not finite: layers.1.feedforward.output: 5 of 40 elements are NaN or infinite" in text
    assert re.search(r"  1 +#\d+ +NaN", text)
    assert json.dumps(finite(told), allow_nan=False)


def test_nan_in_the_attention_is_shown_as_such():
    lm = tiny_lm()
    block = lm.weights.layers[0]
    broken = block._replace(qkv_proj=np.full_like(block.qkv_proj, np.nan))
    lm = lm._replace(weights=lm.weights._replace(layers=(broken, lm.weights.layers[1])))
    told = told_of(lm, layer=0, head=0)
    text = plain(report(told, lm, 100))
    assert "??????????" in text
    assert re.search(r"and \d+ more values after these", text)


def test_colour_needs_a_terminal_and_rich_and_no_objection(monkeypatch):
    class Out:
        def __init__(self, terminal):
            self.isatty = lambda: terminal

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    monkeypatch.setattr(terminal.sys, "stdout", Out(True))
    assert terminal.wants_colour()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not terminal.wants_colour()
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert not terminal.wants_colour()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    monkeypatch.setattr(terminal.sys, "stdout", Out(False))
    assert not terminal.wants_colour()
    monkeypatch.setattr(terminal.sys, "stdout", None)
    assert not terminal.wants_colour()


def test_colour_adds_nothing_but_colour(monkeypatch):
    pytest.importorskip("rich", reason="rich is not installed: pip install -e '.[inspect]'")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)
    lm = tiny_lm()
    told = told_of(lm)
    lines = report(told, lm, 100, colour=True)
    styled = coloured(lines)
    assert "\x1b[1mTokens" in styled
    assert "48;2;" in styled  # a background for the heat map
    without = re.sub(r"\x1b\[[\d;]*m", "", styled)
    assert [line.rstrip() for line in without.split("\n")] == plain(lines).split("\n")


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100 %"), (0.45, "45.0 %"), (0.0123456, "1.23 %"), (0.0, "0 %"), (1e-9, "<0.0001 %"), (math.nan, "NaN")],
)
def test_shares_have_three_digits(share, text):
    assert percent(share) == text


def test_large_numbers_are_written_for_people():
    assert [amount(n) for n in (0, 12, 1348, 1_350_000_000)] == ["0", "12", "1.35 k", "1.35 G"]
