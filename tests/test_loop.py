"""The generation loop on tiny models: one with random weights, and one that recites a text."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from libraries import NUMPY
from models import random_ids, random_weights, tiny_config

import npllm
from npllm.apps.calls import generate, steps, stream
from npllm.attention import attention
from npllm.cache import empty_cache, kv_cache_bytes
from npllm.errors import ModelFileError, NotEnoughMemoryError, UsageError
from npllm.flash import flash_attention
from npllm.heads import lm_head
from npllm.lm import LM
from npllm.model import transform
from npllm.options import check_ids, check_options
from npllm.shapes import Weights
from npllm.text.stream import split_at_stop

SAMPLED = {"temperature": 1.0, "top_k": 8, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.2}


class Pieces:
    """A stand-in for the tokenizer: a list of token texts."""

    def __init__(self, pieces, ends=()):
        self.pieces, self.end_ids, self.backend = pieces, frozenset(ends), self

    def encode(self, text):
        return [self.pieces.index(character) for character in text]


class PieceStream:
    """A stand-in for text.stream.TextStream. A piece in parentheses stays incomplete until the next or the end."""

    def __init__(self, backend, context_ids):
        self.pieces, self.incomplete = backend.pieces, ""
        self.special = {i: piece for i, piece in enumerate(self.pieces) if piece.startswith("<|")}

    def step(self, token):
        if token in self.special:
            return ""
        text, self.incomplete = self.incomplete + self.pieces[token], ""
        if text.startswith("("):
            text, self.incomplete = "", text.strip("()")
        return text

    def complete(self):
        return ""

    def flush(self):
        text, self.incomplete = self.incomplete, ""
        return text


@pytest.fixture(scope="module", autouse=True)
def _pieces_instead_of_a_tokenizer():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("npllm.text.stream.TextStream", PieceStream)
        yield


def random_lm(lib=NUMPY, seed=0, tokenizer=None, **keys):
    """A random model with 11 tokens, no end token and no tokenizer."""
    config = tiny_config(**keys)
    return LM(config, lib.tree(random_weights(config, seed)), tokenizer, {})


def reciting_lm(pieces, ends=(), eos_token_id=None, generation_config=None):
    """A model that predicts token i + 1 after token i; token i + 1 has the text pieces[i].

    All blocks are zero, so the head receives the last token's embedding, a one-hot vector.
    """
    size = len(pieces) + 1
    config = tiny_config(vocab_size=size, hidden_size=size, num_hidden_layers=1, eos_token_id=eos_token_id)
    unit = np.eye(size, dtype=np.float32)
    blocks = (random_weights(config, scale=0.0).layers[0],)
    weights = Weights(unit, blocks, np.ones(size, dtype=np.float32), np.roll(unit, 1, axis=0))
    return LM(config, weights, Pieces(["", *pieces], ends), generation_config or {})


@pytest.fixture
def passes():
    """The passes the loop runs on the model passes.of(lm): ids, attention function and rows for the head."""
    seen = SimpleNamespace(ids=[], attention=[], head_rows=[], total_lengths=[])

    def looking_transform(ids, *arguments, attention=attention, total_length=None, **options):
        seen.ids.append(np.asarray(ids).tolist())
        seen.attention.append(attention)
        seen.total_lengths.append(total_length)
        return transform(ids, *arguments, attention=attention, **options)

    def looking_head(hidden, weights, config):
        seen.head_rows.append(hidden.shape[0])
        return lm_head(hidden, weights, config)

    seen.of = lambda lm: lm._replace(transform=looking_transform, lm_head=looking_head)
    return seen


def test_options_of_another_type_are_refused_in_one_line():
    for name, value in {"max_new_tokens": 2.5, "top_k": "3", "seed": 0.5}.items():
        with pytest.raises(UsageError, match=f"^{name}: expected a whole number, got {value!r}$"):
            check_options(**{name: value})
    with pytest.raises(UsageError, match=r"^temperature: expected 0 .*, got 'warm'$"):
        check_options(temperature="warm")


# The loop


def test_greedy_decoding_takes_the_likeliest_token_each_time(writable_lib):
    lm, ids = random_lm(writable_lib), [3, 1, 4]
    expected = list(ids)
    plain = random_lm()
    for _ in range(6):
        logits, _ = npllm.forward(np.array(expected), plain)
        expected.append(int(np.argmax(logits[-1])))
    made = generate(lm, ids, max_new_tokens=6)
    assert made.ids == expected[3:]
    assert made.prompt_ids == ids
    assert made.finish_reason == "length"


@pytest.mark.parametrize(
    "options", [{}, pytest.param({"seed": 1} | SAMPLED, marks=pytest.mark.slow)], ids=["greedy", "sampled"]
)
@given(seed=st.integers(0, 10), prompt=st.integers(1, 6), window=st.sampled_from([None, 2]))
def test_without_the_cache_the_ids_are_the_same(writable_lib, options, seed, prompt, window):
    lm = random_lm(writable_lib, seed=seed, model_type="mistral", num_key_value_heads=2, sliding_window=window)
    ids = random_ids(lm.config, prompt, seed=seed).tolist()
    cached = generate(lm, ids, max_new_tokens=8, **options)
    assert generate(lm, ids, max_new_tokens=8, use_cache=False, **options) == cached


def test_a_step_computes_the_new_token_only(passes):
    made = generate(passes.of(random_lm()), [3, 1, 4], max_new_tokens=4)
    assert passes.ids == [[3, 1, 4], *([token] for token in made.ids[:-1])]
    assert passes.head_rows == [1] * 4


def test_without_the_cache_a_step_computes_the_whole_text(passes):
    made = generate(passes.of(random_lm()), [3, 1, 4], max_new_tokens=3, use_cache=False)
    assert passes.ids == [[3, 1, 4, *made.ids[:count]] for count in range(3)]


def test_a_long_prompt_goes_through_in_chunks_of_512_tokens(passes):
    lm = passes.of(random_lm(max_position_embeddings=2048, num_hidden_layers=1))
    ids = random_ids(lm.config, 1100, seed=2).tolist()
    made = generate(lm, ids, max_new_tokens=2)
    assert [len(ids_of_pass) for ids_of_pass in passes.ids] == [512] * 2 + [76, 1]
    assert passes.attention == [flash_attention] * 3 + [attention]
    assert passes.total_lengths == [1100] * 3 + [1101], "each chunk has the tables of the whole text"
    assert [token for ids_of_pass in passes.ids for token in ids_of_pass] == [*ids, made.ids[0]]
    assert passes.head_rows == [1, 1]
    best = np.argmax(npllm.forward(np.array(ids), lm)[0], axis=-1)
    assert made.ids[0] == best[-1]
    assert len({best[-1], best[1024], best[0]}) == 3  # any other row would give a different token


def test_a_given_cache_is_continued(passes):
    lm = passes.of(random_lm())
    cache = empty_cache(lm.config, 20, like=lm.weights.norm)
    first = generate(lm, [3, 1, 4], max_new_tokens=4, cache=cache)
    text = [3, 1, 4, *first.ids, 5, 9]
    assert cache["length"] == 6  # the last token was chosen but not computed
    passes.ids.clear()
    second = generate(lm, text, max_new_tokens=3, cache=cache)
    assert passes.ids[0] == [first.ids[-1], 5, 9]
    assert second.ids == generate(lm, text, max_new_tokens=3).ids


def test_steps_stream_and_generate_are_the_same_loop():
    lm = reciting_lm("abcd")
    made = generate(lm, [0], max_new_tokens=3)
    assert [step[:3] for step in steps(lm, [0], max_new_tokens=3)] == [
        (1, "a", None),
        (2, "b", None),
        (3, "c", "length"),
    ]
    assert list(stream(lm, [0], max_new_tokens=3)) == ["a", "b", "c"]
    assert made[:4] == ("abc", [1, 2, 3], [0], "length")


def test_a_text_is_encoded_and_ids_are_taken_as_they_are():
    lm = reciting_lm("abcd")
    assert generate(lm, "b", max_new_tokens=2)[:4] == ("cd", [3, 4], [2], "length")
    assert generate(lm, (2, 1), max_new_tokens=2).prompt_ids == [2, 1]


def test_without_a_tokenizer_there_are_ids_and_no_text():
    lm = reciting_lm("abcd")._replace(tokenizer=None)
    assert generate(lm, [0], max_new_tokens=2)[:4] == ("", [1, 2], [0], "length")
    with pytest.raises(ModelFileError, match="no tokenizer"):
        generate(lm, "a")


def test_a_stream_can_be_left_at_any_step(passes):
    texts = stream(passes.of(reciting_lm("abcd")), [0], max_new_tokens=4)
    assert next(texts) == "a"
    texts.close()
    assert passes.ids == [[0]]


# Where generation ends


@pytest.mark.parametrize("where", ["config", "generation_config", "tokenizer"])
def test_an_end_token_of_any_of_the_three_places_ends_the_text(where):
    lm = reciting_lm(
        "abcdef",
        eos_token_id=3 if where == "config" else None,
        generation_config={"eos_token_id": [3, 6]} if where == "generation_config" else None,
        ends=[3] if where == "tokenizer" else [],
    )
    assert generate(lm, [0], max_new_tokens=6)[:4] == ("ab", [1, 2, 3], [0], "stop")


@given(count=st.integers(1, 6))
def test_there_are_never_more_than_max_new_tokens(count):
    made = generate(reciting_lm("abcdefgh"), [0], max_new_tokens=count)
    assert (made.text, made.finish_reason) == ("abcdefgh"[:count], "length")


def test_an_end_token_as_the_last_of_max_new_tokens_is_a_stop():
    assert generate(reciting_lm("abc", ends=[3]), [0], max_new_tokens=3).finish_reason == "stop"
    assert generate(reciting_lm("abc"), [0], max_new_tokens=3, stop=["c"])[:4] == ("ab", [1, 2, 3], [0], "stop")


def test_the_context_caps_the_text_with_a_warning():
    lm = random_lm(max_position_embeddings=8)
    with pytest.warns(UserWarning, match=r"only 3 new tokens instead of 10.*5.*8"):
        made = generate(lm, [1, 2, 3, 4, 5], max_new_tokens=10)
    assert len(made.ids) == 3
    assert made.finish_reason == "length"
    assert len(generate(lm, [1, 2, 3, 4, 5], max_new_tokens=3).ids) == 3  # just fits: no warning


TEXTS = st.text("ab", max_size=3)


@given(
    pieces=st.lists(TEXTS, min_size=1, max_size=8),
    stop=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=2),
)
@example(pieces=["a", "ab", "b"], stop=["aabb"])
@example(pieces=["aab", "b"], stop=["aabb", "bc"])
def test_a_stop_string_never_leaks(pieces, stop):
    expected, finish_reason = "".join(pieces), "length"
    for count in range(1, len(pieces) + 1):  # the first token that completes a stop string
        text = "".join(pieces[:count])
        if any(s in text for s in stop):
            expected, finish_reason = text[: min(text.index(s) for s in stop if s in text)], "stop"
            break
    made = list(steps(reciting_lm(pieces), [0], max_new_tokens=len(pieces), stop=stop))
    assert "".join(step.text for step in made) == expected
    assert made[-1].finish_reason == finish_reason
    shown = ""
    for step in made:  # also while streaming
        shown += step.text
        assert expected.startswith(shown)


@given(pieces=st.lists(TEXTS, min_size=1, max_size=8), stop=st.text("ab", min_size=1, max_size=4))
def test_with_one_stop_string_the_text_is_what_stands_before_it(pieces, stop):
    made = generate(reciting_lm(pieces), [0], max_new_tokens=len(pieces), stop=stop)
    assert made.text == "".join(pieces).partition(stop)[0]


@pytest.mark.parametrize(
    ("stop", "text", "count"), [("<|x|>", "a", 2), ("a<|", "", 2), ("|>b", "a", 3), ("x", "a", 2), ("|>c", "abc", 4)]
)
def test_a_stop_string_is_found_in_a_special_token_that_is_not_shown(stop, text, count):
    made = generate(reciting_lm(["a", "<|x|>", "b", "c"]), [0], max_new_tokens=4, stop=stop)
    assert (made.text, len(made.ids)) == (text, count)


def test_what_waited_for_a_stop_string_comes_at_the_end():
    assert generate(reciting_lm(["x", "ab"]), [0], max_new_tokens=2, stop=["abc"]).text == "xab"
    assert generate(reciting_lm(["x", "ab", "E"], ends=[3]), [0], max_new_tokens=3, stop=["abE"]).text == "xab"


@pytest.mark.parametrize("ends", [[], [2]], ids=["length", "end token"])
def test_what_is_incomplete_comes_at_the_end(ends):
    lm = reciting_lm(["x", "(y)"] if not ends else ["(x)", "E"], ends=ends)
    assert generate(lm, [0], max_new_tokens=2).text == ("xy" if not ends else "x")


def test_text_is_shown_as_soon_as_it_cannot_become_a_stop_string():
    made = steps(reciting_lm(["a", "b", "a", "c"]), [0], max_new_tokens=4, stop=["abb"])
    assert [step.text for step in made] == ["", "", "ab", "ac"]


def test_split_at_stop_waits_for_the_longest_beginning():
    assert split_at_stop("xaab", ["aabb", "bc"]) == ("x", "aab", False)
    assert split_at_stop("xaabbc", ["aabb", "bc"]) == ("x", "", True)
    assert split_at_stop("text", []) == ("text", "", False)


# Sampling


def test_the_same_seed_gives_the_same_text_on_every_library(writable_lib):
    made = generate(random_lm(writable_lib), [3, 1, 4], max_new_tokens=20, seed=7, **SAMPLED)
    assert made == generate(random_lm(), [3, 1, 4], max_new_tokens=20, seed=7, **SAMPLED)


def test_another_seed_gives_another_text(writable_lib):
    lm = random_lm(writable_lib)
    texts = {tuple(generate(lm, [3], max_new_tokens=20, seed=seed, temperature=1.0).ids) for seed in range(5)}
    assert len(texts) == 5


def test_without_a_seed_every_text_is_another():
    texts = {tuple(generate(random_lm(), [3], max_new_tokens=20, temperature=1.0).ids) for _ in range(5)}
    assert len(texts) == 5


def test_the_repetition_penalty_counts_the_prompt_and_the_new_tokens():
    lm = random_lm()
    # With a penalty this strong, a token repeats only when no other has a better logit.
    ids = [3, 1, 4, *generate(lm, [3, 1, 4], max_new_tokens=4, repetition_penalty=1e6).ids]
    assert len(set(ids)) == len(ids)


# What is refused


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "the prompt is empty"),
        ([1] * 64, "too long: 64 tokens, but the model's context of 64 has room for 63"),
        ([1] * 70, "too long: 70 tokens, but the model's context of 64 has room for 63"),
        ([1, 11], "token 1: expected an id from 0 to 10, got 11"),
        ([-1], "token 0: expected an id from 0 to 10, got -1"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_refused(passes, ids, message):
    with pytest.raises(UsageError, match=message):
        steps(passes.of(random_lm()), ids)  # on the call, not when the first token is requested
    assert not passes.ids


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", -1),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("min_p", float("nan")),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("repetition_penalty", float("inf")),
        ("repetition_penalty", float("nan")),
        ("stop", [""]),
        ("stop", ""),
        ("stop", ["a", ""]),
    ],
)
def test_a_sampling_value_that_means_nothing_is_refused(name, value):
    with pytest.raises(UsageError, match=f"^{name}: expected .*, got "):
        steps(random_lm(), [1], **{name: value})


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 0}], ids=["greedy", "sampled"])
def test_logits_that_are_not_finite_are_refused(writable_lib, value, options):
    lm = random_lm()
    head = lm.weights.lm_head.copy()
    head[5] = value
    weights = lm.weights._replace(lm_head=head, norm=np.abs(lm.weights.norm))
    with np.errstate(invalid="ignore"), pytest.raises(ModelFileError, match=r"logits after token 3.* expected finite"):
        generate(lm._replace(weights=writable_lib.tree(weights)), [3, 1, 4], max_new_tokens=4, **options)


def test_a_cache_that_does_not_fit_into_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr("npllm.devices.device.available_bytes", lambda: 500)
    with pytest.raises(NotEnoughMemoryError, match="KV cache"):
        steps(random_lm(), [1], max_new_tokens=4)


def test_kv_cache_bytes_are_those_of_an_empty_cache():
    config = tiny_config()
    cache = empty_cache(config, 9, like=np.zeros(0))
    assert kv_cache_bytes(config, 9) == sum(array.nbytes for name in ("keys", "values") for array in cache[name])


def test_ids_are_checked_at_both_ends():
    check_ids([0, 10], 11)
    for wrong in (-1, 11):
        with pytest.raises(UsageError):
            check_ids([0, wrong], 11)


def test_a_cache_without_room_for_the_prompt_is_refused():
    lm = random_lm()
    with pytest.raises(UsageError, match="cache: expected room for all 3 tokens of the prompt, got less; use"):
        steps(lm, [1, 2, 3], cache=empty_cache(lm.config, 2, like=lm.weights.norm))


def test_a_cache_that_holds_the_whole_prompt_gives_the_same_ids(writable_lib):
    lm, prompt = random_lm(writable_lib), [1, 2, 3]
    cache = empty_cache(lm.config, 12, like=lm.weights.norm)
    first = [step.id for step in steps(lm, prompt, max_new_tokens=5, cache=cache)]
    assert [step.id for step in steps(lm, prompt, max_new_tokens=5, cache=cache)] == first


def test_stop_strings_need_a_tokenizer():
    with pytest.raises(UsageError, match="stop: expected a model with a tokenizer"):
        steps(random_lm()._replace(tokenizer=None), [1, 2], stop=["a"])
