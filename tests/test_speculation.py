"""Drafting changes only the speed: the ids stay the same, or with a sampled draft, the probabilities."""

import math
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from checkpoints import write_folder
from hypothesis import example, given
from hypothesis import strategies as st
from libraries import NUMPY
from models import config_keys, random_ids, random_weights, tiny_config
from test_loop import PieceStream, random_lm, reciting_lm
from tolerance import assert_close, assert_same_ids

import npllm
from npllm.apps import speculation
from npllm.apps.calls import generate, steps
from npllm.apps.chat import Chat
from npllm.apps.speculation import accept_or_replace, check_count, draft_model, look_up, prompt_lookup
from npllm.cache import empty_cache
from npllm.errors import ModelFileError, UsageError
from npllm.lm import LM
from npllm.model import transform
from npllm.sampling import choose, softmax

SAMPLED = {"temperature": 1.2, "top_k": 9, "top_p": 0.98, "min_p": 0.01, "repetition_penalty": 1.1, "seed": 1}
HOT = {"temperature": 1.5, "seed": 1}
OPTIONS = pytest.mark.parametrize("options", [{}, SAMPLED, HOT], ids=["greedy", "filters", "hot"])


def tiny_lm(keys=(), seed=0, scale=1.0):
    """A random model with 11 tokens. At a small scale the blocks do little, and it soon repeats itself."""
    config = tiny_config(**dict(keys))
    return LM(config, random_weights(config, seed, scale), None, {})


def assert_same_text(lm, ids, made, plain):
    """Assert that a greedy text equals the plain one, up to near ties between logits."""
    if made != plain:
        text = np.array([*ids, *plain])
        logits = np.sort(npllm.forward(text, lm)[0][len(ids) - 1 : -1], axis=-1)
        assert_same_ids("speculation", made, plain, logits[:, -1] - logits[:, -2])


# The same text


@given(
    keys=config_keys(),
    seed=st.integers(0, 20),
    prompt=st.integers(1, 8),
    count=st.integers(1, 12),
    scale=st.sampled_from([0.1, 1.0]),
)
def test_greedy_decoding_with_lookup_gives_the_same_ids(keys, seed, prompt, count, scale):
    lm = tiny_lm(keys, seed, scale)
    ids = random_ids(lm.config, prompt, seed=seed).tolist()
    plain = generate(lm, ids, max_new_tokens=16).ids
    assert_same_text(lm, ids, generate(lm, ids, max_new_tokens=16, tokens=prompt_lookup(count)).ids, plain)


@pytest.mark.slow
@given(keys=config_keys(), small_keys=config_keys(), seed=st.integers(0, 20), count=st.integers(1, 6))
def test_greedy_decoding_with_a_draft_model_gives_the_same_ids(keys, small_keys, seed, count):
    lm, small = tiny_lm(keys, seed), tiny_lm(small_keys, seed + 1)
    ids = random_ids(lm.config, 4, seed=seed).tolist()
    plain = generate(lm, ids, max_new_tokens=7).ids
    assert_same_text(lm, ids, generate(lm, ids, max_new_tokens=7, tokens=draft_model(small, count)).ids, plain)


@pytest.mark.slow
@given(seed=st.integers(0, 100), count=st.integers(1, 8), window=st.sampled_from([None, 2]))
def test_with_lookup_the_same_seed_draws_the_same_text(seed, count, window):
    lm = tiny_lm({"model_type": "mistral", "sliding_window": window}.items(), seed, scale=0.3)
    ids = [*random_ids(lm.config, 5, seed=seed).tolist()] * 2
    for options in (SAMPLED, HOT):
        options = options | {"seed": seed, "max_new_tokens": 12}
        assert generate(lm, ids, tokens=prompt_lookup(count), **options) == generate(lm, ids, **options)


@pytest.mark.parametrize("kind", ["lookup", "draft model"])
def test_every_library_gives_the_same_text(writable_lib, kind):
    def made(lib, **options):
        tokens = prompt_lookup(4) if kind == "lookup" else draft_model(random_lm(lib, seed=1), 3)
        return generate(random_lm(lib), [3, 1, 4, 3, 1], max_new_tokens=9, tokens=tokens, **options)

    for options in ({}, SAMPLED):
        assert made(writable_lib, **options) == made(NUMPY, **options)


def test_a_model_that_drafts_for_itself_is_always_right():
    lm = tiny_lm()
    for options in ({}, HOT):
        result = {}
        generate(lm, [3, 1, 4], max_new_tokens=21, tokens=draft_model(lm, 4, result), **options)
        assert result == {"passes": 5, "drafted": 16, "accepted": 16}  # 1 token from the prompt's pass, then 5 per pass


def test_the_same_seed_gives_the_same_text_with_a_draft_model():
    lm, small = tiny_lm(), tiny_lm(seed=1)
    texts = [generate(lm, [3, 1, 4], max_new_tokens=20, tokens=draft_model(small), **HOT).ids for _ in range(2)]
    other = generate(lm, [3, 1, 4], max_new_tokens=20, tokens=draft_model(small), temperature=1.5, seed=2).ids
    assert texts[0] == texts[1] != other


# The same probabilities

SHARES = st.lists(st.integers(0, 6), min_size=4, max_size=4).filter(any)


class Scripted(np.random.Generator):
    """A generator that returns the numbers in a list."""

    def __init__(self, numbers):
        super().__init__(np.random.PCG64())
        self.numbers = iter(numbers)

    def random(self):
        return next(self.numbers)


@given(p=SHARES, q=SHARES)
def test_a_drawn_draft_leaves_the_models_probabilities(p, q):
    p, q = (np.array(shares, dtype=np.float32) / np.float32(sum(shares)) for shares in (p, q))
    evenly = (np.arange(16) + 0.5) / 16  # evenly spaced random numbers, so the shares are exact
    made = np.zeros(4)
    for guess in np.flatnonzero(q):
        results = [accept_or_replace(int(guess), p, q, Scripted([u, v])) for u, v in product(evenly, evenly[1::4])]
        made += q[guess] * np.bincount(results, minlength=4) / len(results)
    assert np.all(np.abs(made - p) <= 1 / 32 + 1 / 8)  # half a grid step of u and of v
    assert not np.any(made[p == 0])


def test_a_draft_is_accepted_with_the_ratio_of_the_probabilities():
    p, q = np.array([0.3, 0.7], dtype=np.float32), np.array([0.6, 0.4], dtype=np.float32)
    assert accept_or_replace(0, p, q, Scripted([0.49])) == 0
    assert accept_or_replace(0, p, q, Scripted([0.51, 0.0])) == 1
    assert accept_or_replace(1, p, q, Scripted([1 - 2**-53])) == 1
    assert accept_or_replace(0, q, q, Scripted([1 - 2**-53])) == 0


@pytest.mark.slow
def test_a_text_with_a_draft_model_has_the_probabilities_of_one_without(monkeypatch):
    """The frequency of each three-token text among 600 texts with fixed seeds."""
    lm, small = tiny_lm({"vocab_size": 3}.items()), tiny_lm({"vocab_size": 3}.items(), seed=1)
    sampling = {"temperature": 0.9, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.5}

    def logits(model, ids):  # arbitrary, but dependent on the whole text
        return np.random.default_rng([model is small, *ids]).standard_normal(3).astype(np.float32)

    def next_logits(model, ids, cache, rows=1):
        cache["length"] = len(ids)
        return np.stack([logits(model, ids[: len(ids) - row]) for row in reversed(range(rows))])

    def probabilities(ids):
        values = {}
        choose(logits(lm, ids), seen=np.isin(np.arange(3), ids), tap=npllm.record(values), **sampling)
        return softmax(values["temperature"]).astype(np.float64)

    monkeypatch.setattr(speculation, "next_logits", next_logits)
    runs, counts, result = 600, np.zeros((3, 3, 3)), {}
    for seed in range(runs):
        ids, cache = [0], empty_cache(lm.config, 8, like=lm.weights.norm)
        how = {**sampling, "process": None, "top_logprobs": 0}
        made = draft_model(small, 2, result)(lm, ids, cache, np.random.default_rng(seed), how)
        counts[next(made).id, next(made).id, next(made).id] += 1
    for a, b, c in product(range(3), repeat=3):
        expected = probabilities([0])[a] * probabilities([0, a])[b] * probabilities([0, a, b])[c]
        assert abs(counts[a, b, c] / runs - expected) <= 4 * math.sqrt(expected / runs)  # standard deviations
    assert 0.2 * result["drafted"] < result["accepted"] < 0.9 * result["drafted"]


def test_a_text_has_the_drafts_own_probabilities_in_mind():
    """A model that drafts for itself draws from the probabilities it is checked with, penalty included."""
    lm, result = tiny_lm(), {}
    options = {"temperature": 1.0, "repetition_penalty": 4.0, "seed": 3}
    generate(lm, [3, 1, 4], max_new_tokens=25, tokens=draft_model(lm, 8, result), **options)
    assert result["accepted"] == result["drafted"] > 0


# Drafting


@given(ids=st.lists(st.integers(0, 3), max_size=20), most=st.integers(0, 8))
@example(ids=[0, 1, 2, 0, 1, 3, 0, 1], most=1)
def test_the_lookup_copies_what_followed_the_last_place_of_the_last_tokens(ids, most):
    text = "".join("abcd"[i] for i in ids)
    expected = ""
    for size in (3, 2):
        place = text[:-1].rfind(text[-size:]) if len(text) > size else -1
        if place >= 0:
            for _ in range(most):
                expected += (text + expected)[place + size + len(expected)]
            break
    assert "".join("abcd"[i] for i in look_up(ids, most)) == expected


def counting(lm):
    """The widths of the passes, and a model that records them."""
    widths = []

    def looking_transform(ids, *arguments, **options):
        widths.append(len(ids))
        return transform(ids, *arguments, **options)

    return widths, lm._replace(transform=looking_transform)


def test_a_pass_checks_all_that_was_drafted():
    result, (widths, lm) = {}, counting(reciting_lm("abcd")._replace(tokenizer=None))
    made = generate(lm, [0, 1, 2, 3, 4, 0, 1], max_new_tokens=12, tokens=prompt_lookup(4, result))
    assert made.ids == [2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert widths == [7, 5, 5, 1]  # the prompt; twice, four drafts and the token before them; the last token
    assert result == {"passes": 4, "drafted": 8, "accepted": 8}


def test_what_was_refused_is_counted_and_the_models_own_token_taken():
    result, (widths, lm) = {}, counting(reciting_lm("abcdef")._replace(tokenizer=None))
    made = generate(lm, [2, 3, 3, 1, 2], max_new_tokens=3, tokens=prompt_lookup(2, result))
    assert made.ids == [3, 4, 5]
    assert widths == [5, 2, 1]  # 2, 3 was followed by 3, but the model predicts 4
    assert result == {"passes": 3, "drafted": 1, "accepted": 0}


@pytest.mark.parametrize("count", [1, 5, 64])
@pytest.mark.parametrize("new", [1, 2, 7])
def test_no_more_is_drafted_than_there_is_to_come(count, new):
    widths, lm = counting(reciting_lm("abcd")._replace(tokenizer=None))
    made = generate(lm, [0, 1, 2, 3, 4] * 2, max_new_tokens=new, tokens=prompt_lookup(count))
    assert made == generate(lm, [0, 1, 2, 3, 4] * 2, max_new_tokens=new)
    assert sum(widths[: widths.index(10, 1) if 10 in widths[1:] else None]) <= 10 + new


def test_the_context_caps_the_draft():
    lm = tiny_lm({"max_position_embeddings": 12}.items())
    with pytest.warns(UserWarning, match="only 6 new tokens"):
        made = generate(lm, [1, 2, 1, 2, 1, 2], max_new_tokens=50, tokens=prompt_lookup(64))
    with pytest.warns(UserWarning, match="only 6 new tokens"):
        assert made == generate(lm, [1, 2, 1, 2, 1, 2], max_new_tokens=50)


def test_a_draft_model_with_a_shorter_context_drafts_as_far_as_it_reaches():
    lm, result = tiny_lm(), {}
    small = LM(tiny_config(max_position_embeddings=8), lm.weights, None, {})
    made = generate(lm, [1, 2, 3], max_new_tokens=12, tokens=draft_model(small, 4, result))
    assert made == generate(lm, [1, 2, 3], max_new_tokens=12)
    assert result["accepted"] == result["drafted"] == 4
    assert result["passes"] == 12 - 4


def test_a_draft_model_is_read_the_prompt_once():
    lm, (widths, small) = tiny_lm(), counting(tiny_lm())
    generate(lm, [1, 2, 3, 4, 5], max_new_tokens=9, tokens=draft_model(small, 3))
    assert widths == [6, 1, 1, 2, 1, 1]  # after a full match: its last draft and the model's own token


def test_a_draft_model_can_be_used_for_one_text_after_another():
    lm, small = tiny_lm(), tiny_lm(seed=1)
    tokens = draft_model(small, 3)
    for ids in ([3, 1, 4], [3, 1, 4, 1, 5], [3, 1], [7]):
        made = generate(lm, ids, max_new_tokens=10, tokens=tokens, **HOT)
        assert made == generate(lm, ids, max_new_tokens=10, tokens=draft_model(small, 3), **HOT)


def test_a_draft_model_is_as_right_with_its_cache_as_without():
    lm, small, passes = tiny_lm(), tiny_lm(seed=1), []

    def looking_transform(ids, weights, config, cache, **options):
        passes.append((cache["length"], np.asarray(ids).tolist()))
        return transform(ids, weights, config, cache, **options)

    text = [3, 1, 4]
    text += generate(
        lm._replace(transform=looking_transform), text, max_new_tokens=12, tokens=draft_model(small, 3)
    ).ids
    for past, (_, *guesses) in passes[1:]:
        assert guesses == generate(small, text[: past + 1], max_new_tokens=3).ids[: len(guesses)]


# The cache


@OPTIONS
@pytest.mark.parametrize("kind", ["lookup", "draft model"])
def test_with_each_step_the_cache_holds_all_but_the_last_token(options, kind):
    lm = tiny_lm({"num_key_value_heads": 2}.items(), scale=0.5)
    tokens = prompt_lookup(5) if kind == "lookup" else draft_model(tiny_lm(seed=1, scale=0.5), 4)
    ids, cache = [3, 1, 4, 3, 1], empty_cache(lm.config, 40, like=lm.weights.norm)
    for step in steps(lm, ids, max_new_tokens=20, cache=cache, tokens=tokens, **options):
        ids.append(step.id)
        assert cache["length"] == len(ids) - 1
        fresh = empty_cache(lm.config, 40, like=lm.weights.norm)
        npllm.transform(np.array(ids[:-1]), lm, fresh)
        for name in ("keys", "values"):
            for held, computed in zip(cache[name], fresh[name], strict=True):
                assert_close(name, held[:, : cache["length"]], computed[:, : cache["length"]])


def test_a_given_cache_that_is_nearly_full_bounds_the_draft():
    lm = reciting_lm("abcd")._replace(tokenizer=None)
    cache = empty_cache(lm.config, 14, like=lm.weights.norm)
    made = steps(lm, [0, 1, 2, 3, 4] * 2, max_new_tokens=4, cache=cache, tokens=prompt_lookup(30))
    assert [step.id for step in made] == [0, 1, 2, 3]


# Where generation ends


@pytest.fixture
def pieces(monkeypatch):
    monkeypatch.setattr("npllm.text.stream.TextStream", PieceStream)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize(
    ("ends", "stop"), [([], []), ([], ["bc"]), ([], ["d"]), ([3], [])], ids=["length", "in", "at", "end token"]
)
@pytest.mark.parametrize("new", [3, 4, 11])
def test_the_text_ends_within_what_was_accepted_as_without(ends, stop, new):
    lm, result = reciting_lm("abcd", ends=ends), {}
    ids, options = [0, 1, 2, 3, 4] * 2, {"max_new_tokens": new, "stop": stop}
    assert list(steps(lm, ids, tokens=prompt_lookup(8, result), **options)) == list(steps(lm, ids, **options))
    assert result["accepted"] > 0


def test_a_text_can_be_left_at_any_step():
    lm = reciting_lm("abcd")._replace(tokenizer=None)
    cache, ids = empty_cache(lm.config, 30, like=lm.weights.norm), [0, 1, 2, 3, 4] * 2
    made = steps(lm, ids, max_new_tokens=9, cache=cache, tokens=prompt_lookup(8))
    assert [next(made).id for _ in range(4)] == [0, 1, 2, 3]
    made.close()
    assert cache["length"] == len(ids) + 3


# Conversations


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    write_folder(path, max_position_embeddings=512)
    return path


@pytest.fixture(scope="module")
def lm(folder):
    return npllm.load(folder)


@pytest.mark.parametrize("kind", ["lookup", "draft model"])
def test_a_conversation_is_the_same(lm, kind):
    result = {}
    tokens = prompt_lookup(8, result) if kind == "lookup" else draft_model(lm, 3, result)
    plain, chat = Chat(lm), Chat(lm)
    for turn in ("Hello, you! Hello, you!", "And then? And then?", "the end of it"):
        expected = [step.id for step in plain.reply(turn, max_new_tokens=20)]
        assert [step.id for step in chat.reply(turn, max_new_tokens=20, tokens=tokens)] == expected
        assert chat.cache["length"] == len(chat.cached_ids) == len(plain.cached_ids)
    assert chat.messages == plain.messages
    assert result["drafted"] > 0


# What is refused


def test_without_the_cache_there_is_nothing_to_check_a_draft_against(lm):
    with pytest.raises(UsageError, match=r"^use_cache: expected True with speculative decoding"):
        steps(lm, [1, 2], use_cache=False, tokens=prompt_lookup(4))


@pytest.mark.parametrize("count", [0, -1, 65, 2.5, "4"])
def test_a_number_of_drafted_tokens_that_makes_no_sense_is_refused(count):
    expected = "a number of tokens from 1 to 64" if isinstance(count, int) else "a whole number"
    with pytest.raises(UsageError, match=f"^prompt_lookup: expected {expected}, got {count!r}$"):
        check_count("prompt_lookup", count)


def test_the_number_of_drafted_tokens_is_checked_at_once():
    for draft in (prompt_lookup, lambda count: draft_model(tiny_lm(), count)):
        with pytest.raises(UsageError, match=r"from 1 to 64, got 0$"):
            draft(0)


def test_a_draft_model_with_another_vocabulary_is_refused_at_once(lm):
    with pytest.raises(UsageError, match=r"^draft model: expected .* vocabulary of 11 tokens, got one of 12$"):
        steps(tiny_lm(), [1, 2], max_new_tokens=9, tokens=draft_model(tiny_lm({"vocab_size": 12}.items())))
    vocabulary = lm.tokenizer.backend.get_vocab()
    first, second, *_ = vocabulary
    swapped = vocabulary | {first: vocabulary[second], second: vocabulary[first]}
    other = lm._replace(tokenizer=SimpleNamespace(backend=SimpleNamespace(get_vocab=lambda: swapped)))
    with pytest.raises(UsageError, match=r"^draft model: expected the model's own vocabulary, where .* has the id"):
        steps(lm, [1, 2], tokens=draft_model(other))


def test_a_refused_draft_model_leaves_the_cache_as_it_was():
    lm = tiny_lm()
    cache = empty_cache(lm.config, 20, like=lm.weights.norm) | {"length": 2}
    with pytest.raises(UsageError, match="draft model"):
        steps(lm, [1], max_new_tokens=9, cache=cache, tokens=draft_model(tiny_lm({"vocab_size": 12}.items())))
    assert (cache["length"], "ids" in cache) == (2, False)


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    """Two models with the same tokenizer of 270 tokens, and 300 and 332 rows."""
    folder = tmp_path_factory.mktemp("padded")
    for rows in (300, 332):
        write_folder(folder / str(rows), vocab_size=rows, seed=rows)
    return [npllm.load(folder / str(rows)) for rows in (300, 332)]


@pytest.mark.parametrize("options", [{}, HOT], ids=["greedy", "sampled"])
@pytest.mark.parametrize("order", [1, -1], ids=["the draft has more rows", "the draft has fewer"])
def test_a_draft_model_may_have_more_or_fewer_rows_than_the_vocabulary_needs(padded, order, options):
    lm, small = padded[::order]
    result = {}
    made = generate(lm, "and the 12", max_new_tokens=30, tokens=draft_model(small, 4, result), **options)
    assert result["drafted"] > 0
    assert all(token < lm.config.vocab_size for token in made.ids)
    plain = generate(lm, "and the 12", max_new_tokens=30)
    assert options or made == plain
    beyond = [*plain.prompt_ids, 299 if order == 1 else 331]  # a row that the smaller model may not have
    result.clear()
    made = generate(lm, beyond, max_new_tokens=9, tokens=draft_model(small, 4, result))
    assert made == generate(lm, beyond, max_new_tokens=9)
    assert (result["drafted"] > 0) is (order == 1)


def test_a_row_of_the_drafts_padding_is_never_drafted(padded):
    """Even if the draft model finds it likeliest."""
    lm, small = padded
    head = small.weights.lm_head.copy()
    head[300:] *= np.float32(100)
    small = small._replace(weights=small.weights._replace(lm_head=head))
    made = generate(lm, "and the 12", max_new_tokens=20, tokens=draft_model(small, 4), seed=1, temperature=1.0)
    assert max(made.ids) < 300
    made = generate(lm, "and the 12", max_new_tokens=20, tokens=draft_model(small, 4))
    assert made == generate(lm, "and the 12", max_new_tokens=20)


@pytest.mark.parametrize("options", [{}, HOT], ids=["greedy", "sampled"])
def test_logits_that_are_not_finite_are_refused(options):
    lm, small = tiny_lm(), tiny_lm()
    head = lm.weights.lm_head.copy()
    head[5] = np.nan
    broken = lm._replace(weights=lm.weights._replace(lm_head=head))
    for big, drafting in ((broken, small), (lm, broken)):
        with np.errstate(invalid="ignore"), pytest.raises(ModelFileError, match=r"logits after token \d+.* finite"):
            generate(big, [3, 1, 4], max_new_tokens=6, tokens=draft_model(drafting), **options)
