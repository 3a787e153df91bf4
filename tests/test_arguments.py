"""Arguments that make no sense, in every public call: an error of ours that names the argument, and nothing changed."""

import dataclasses
import math
import re
from collections import deque
from fractions import Fraction
from numbers import Real

import jaxtyping
import numpy as np
import pytest
from checkpoints import write_folder
from families import random_lm

import npllm
from npllm.apps.ablate import without_layers
from npllm.apps.chat import Chat
from npllm.apps.classify import classify, classify_tokens
from npllm.apps.evaluate import evaluate, reference
from npllm.apps.packing import first_fit, pack
from npllm.apps.speculation import draft_model, prompt_lookup
from npllm.cache import empty_cache
from npllm.errors import NpllmError, UsageError
from npllm.inspect.trace import trace
from npllm.text.arguments import checked, plain, shown, token_ids

LM = random_lm("llama")  # 23 tokens, a context of 64, four layers, two key/value heads of width 8
LIKE = LM.weights.norm
HIDDEN = npllm.transform([1, 2], LM)[0]
HUGE = 10**400


@pytest.fixture(autouse=True)
def _as_without_the_tests_own_checks(monkeypatch):
    """The annotations are not enforced here, as in normal use."""
    monkeypatch.setattr(jaxtyping.config, "off", True)


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """A tiny model with a tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_folder(folder)
    return npllm.load(folder)


def kv(capacity=20, **changes):
    return empty_cache(LM.config, capacity, like=LIKE) | changes


def arrays(dtype=np.float32, shape=(2, 20, 8), layers=4):
    return [np.zeros(shape, dtype=dtype) for _ in range(layers)]


# What is refused: the argument that the message must name -> wrong values

OPTIONS = {
    "max_new_tokens": [
        0,
        -1,
        2.0,
        2.5,
        math.nan,
        None,
        "3",
        b"3",
        True,
        [3],
        (),
        np.array([3]),
        3j,
        {},
        np.bool_(True),
    ],
    "temperature": [-1, math.nan, math.inf, HUGE, -HUGE, "1", None, True, [1.0], np.array([1.0, 2.0]), np.ones(1), 1j],
    "top_k": [-1, 1.0, "5", None, False, [5], np.array([1, 2]), math.inf],
    "top_p": [0, 1.1, math.nan, None, "0.9", True, [0.9], np.array([0.5]), HUGE],
    "min_p": [-0.1, 1.1, math.nan, None, "0", False, {}],
    "repetition_penalty": [0, -1, math.inf, math.nan, None, "1", True, HUGE, 1e300],
    "stop": [5, 5.0, True, b"a", [b"a"], [5], [None], [""], "", object(), [["a"]], {"a": 1}.items()],
    "seed": [-1, 0.5, "1", True, [1], np.array([1, 2]), math.nan, b"1", np.float32(1)],
    "use_cache": [None, 0, 1, "no", [], np.array([True, False])],
    "cache_dtype": [None, 5, "int8", "float64", np.float16, ["float32"], b"float32"],
    "tokens": [None, 5, "prompt_lookup"],
    "logits_processors": [5, len, "f", [5], [None], {len: 1}.items()],
    "top_logprobs": [-1, 1.0, "5", True, [5], np.array([1, 2]), math.inf],
    "tap": [None, 5, "norm", {}],
}
PROMPTS = [
    None, 5, 2.5, True, object(), b"\1\2", bytearray(b"\1\2"), {1, 2}, frozenset([1]), {1: 2}, iter([1, 2]),
    [1.0], [1, 2.5], [None], [[1, 2]], [[1], [2]], ["a"], [True], [1, False], [1, "2"], [b"a"], [1, math.nan], [1j],
    np.array([1.0]), np.array([[1, 2]]), np.array(1), np.array([True]), np.array(["a"]), np.array([None]),
    [np.float64(1)], [np.bool_(True)], [np.array([1])], (), [], np.array([], dtype=int), [23], [-1], [HUGE], [2**63],
    [1] * 64,
]  # fmt: skip
CACHES = [
    5, "cache", [], (), {}, True, {"keys": arrays()}, {"keys": arrays(), "values": arrays()},
    kv(keys=None), kv(values=5), kv(keys=()), kv(keys=arrays(layers=3)), kv(values=arrays(layers=5)), kv(keys=[]),
    kv(keys=arrays(shape=(2, 20, 4))), kv(keys=arrays(shape=(1, 20, 8))), kv(values=arrays(shape=(2, 19, 8))),
    kv(keys=arrays(shape=(20, 8))), kv(keys=arrays(shape=())), kv(keys=arrays(shape=(3, 2, 20, 8))),
    kv(keys=arrays(np.float64)), kv(values=arrays(np.int8)), kv(keys=arrays(np.complex64)), kv(values=arrays(bool)),
    kv(keys=[[0.0]] * 4), kv(keys=[None] * 4), kv(values=["a"] * 4),
    kv(length=None), kv(length=1.0), kv(length=-1), kv(length=21), kv(length="0"), kv(length=True), kv(length=[0]),
    kv(length=HUGE), kv(length=math.nan), kv(2),
]  # fmt: skip
MODELS = [None, 5, "model", [1, 2], np.zeros(3), LM.config, LM.weights, object(), {"config": LM.config}, npllm.LM]
MASK = np.ones((2, 2), dtype=bool)
PASS = {
    "positions": [[0, "a"], [0], [[0], [0, 1]], [0, 2**70], [0.0, 1.0], 5, "ab", np.array([0.0, 1.0]), np.array([0]),
                  np.zeros((2, 3), int), np.array([True, True])],
    "visible": [MASK.astype(int), MASK.astype(np.float32), np.where(MASK, 0.0, -np.inf), MASK[:1], MASK[:, :1], 5, "ab",
                [MASK] * 3, [], [None, None, None, 5], True],
    "total_length": [2.0, "2", 0, -1, True, [2]],
    "tap": [None, 5, "record", {}],
    "attention": [5],
    "block": [5, "block"],
    "embed": [5],
    "norm": [5],
}  # fmt: skip


def refused(call, *names):
    """The call ends in an error of ours, in one line that begins with one of these names."""
    with pytest.raises(NpllmError) as error:
        call()
    message = str(error.value)
    assert isinstance(error.value, UsageError), message
    assert "\n" not in message
    assert len(message) < 400
    assert "\n" not in repr(error.value)
    assert re.match("|".join(names), message), message


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_of_the_loop(name):
    cache = kv(length=1)
    for value in OPTIONS[name]:
        options = {"cache": cache, name: value}
        refused(lambda options=options: npllm.steps(LM, [1, 2], **options), f"{name}: expected ")
        refused(lambda options=options: npllm.generate(LM, [1, 2], **options), f"{name}: expected ")
        refused(lambda options=options: [*npllm.stream(LM, [1, 2], **options)], f"{name}: expected ")
    assert (cache["length"], {*cache}) == (1, {"keys", "values", "length"})


def test_a_prompt():
    for ids in PROMPTS:
        check_prompt_is_refused(ids)


def check_prompt_is_refused(ids):
    names = "prompt: expected", "the prompt is ", "token 0: ", "ids: expected", "token 1: "
    cache = kv(64, length=1)
    refused(lambda: npllm.generate(LM, ids, cache=cache), *names, "cache: expected none with a list of prompts")
    refused(lambda: list(npllm.stream(LM, ids, cache=cache)), *names, "cache: expected none with a list of prompts")
    refused(lambda: npllm.steps(LM, ids, cache=cache), *names, "cache: expected none with a list of prompts")
    refused(lambda: without_layers(LM, ids), *names)
    if not isinstance(ids, list) or len(ids) < 64:  # a whole context is no prompt, but a text
        refused(lambda: trace(LM, ids), *names)
        refused(lambda: [*evaluate(LM, ids, window=8, stride=4)], *names, "the text is too short")
    assert cache["length"] == 1


IDS = [
    None, 5, "text", b"ab", {1}, [1.5], [True], [[1, 2], [3]], [[[1]]], [[1], 2], [], [[]], [23], [-1], [[1, 23]],
    np.array([1.0]), np.array([True]), np.array(["a"]), np.array(1), np.array([], dtype=int), np.zeros((0, 2), int),
    np.array([23]), np.array([-1]), np.array([2**63], dtype=np.uint64), iter([1]), range(0),
]  # fmt: skip


@pytest.mark.parametrize("call", [npllm.transform, npllm.forward])
def test_the_ids_of_a_pass(call):
    cache = kv()
    for ids in IDS:
        refused(lambda ids=ids: call(ids, LM, cache), "ids: expected", r"token \d: expected")
    assert cache["length"] == 0


@pytest.mark.parametrize("name", PASS)
@pytest.mark.parametrize("call", [npllm.transform, npllm.forward])
def test_an_option_of_a_pass(call, name):
    for value in PASS[name]:
        refused(lambda value=value: call([1, 2], LM, **{name: value}), f"{name}: expected ")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_an_option_that_the_familys_pass_does_not_have_is_refused(family):
    with pytest.raises(UsageError, match=r"^token_types: expected an option of this model's pass \(attention, "):
        npllm.transform([1, 2], random_lm(family), token_types=[0, 0])
    with pytest.raises(TypeError, match="unexpected keyword argument 'attention_mask'"):
        npllm.forward([1, 2], random_lm(family), attention_mask=[1, 1])


def test_a_pass_that_takes_any_option_takes_those_of_the_model():
    """As the passes of a GPU do, which wrap the family's."""
    lm = random_lm("bert")
    wrapped = lm._replace(transform=lambda *arguments, **options: lm.transform(*arguments, **options))
    expected, _ = npllm.forward([1, 2], lm, token_types=[0, 1], positions=[1, 0])
    np.testing.assert_array_equal(npllm.forward([1, 2], wrapped, token_types=[0, 1], positions=[1, 0])[0], expected)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_positions_end_with_their_embeddings(family):
    lm = random_lm(family)
    rows = lm.weights.embed_positions.shape[0]
    npllm.forward([1] * rows, lm)
    message = f"^ids: expected at most {rows} tokens, the rows of the position embeddings, got {rows + 1}$"
    with pytest.raises(UsageError, match=message):
        npllm.forward([1] * (rows + 1), lm)
    for place in (rows, -1):
        for positions in ([0, place], np.array([0, place]), [[0, place]]):
            with pytest.raises(UsageError, match=f"^positions: expected positions from 0 to {rows - 1}, got {place}$"):
                npllm.transform([1, 2], lm, positions=positions)
    last, _ = npllm.transform([1], lm, positions=[rows - 1])
    np.testing.assert_array_equal(npllm.transform([1], lm, positions=np.array([rows - 1]))[0], last)
    if family == "gpt2":
        cache = empty_cache(lm.config, rows + 1, like=lm.weights.norm)
        npllm.forward([1] * rows, lm, cache)
        with pytest.raises(UsageError, match=message):
            npllm.forward([1], lm, cache)
        npllm.forward([1], lm, cache, positions=[0])


def test_a_cache():
    for cache in CACHES:
        check_cache_is_refused(cache)


def check_cache_is_refused(cache):
    before = dict(cache) if isinstance(cache, dict) else cache
    refused(lambda: npllm.steps(LM, [1, 2, 3], cache=cache), "cache: ")
    refused(lambda: npllm.forward([1, 2, 3], LM, cache), "cache: ")
    refused(lambda: npllm.transform(np.array([1, 2, 3]), LM, cache), "cache: ")
    assert cache is before or cache == before or all(cache[name] is before[name] for name in before)


def test_a_cache_of_another_batch_or_model():
    refused(lambda: npllm.forward([[1, 2], [3, 4]], LM, kv()), "cache: keys")
    refused(lambda: npllm.forward([1, 2], LM, empty_cache(LM.config, 9, (2,), like=LIKE)), "cache: keys")
    refused(lambda: npllm.steps(random_lm("gpt2"), [1], cache=kv()), "cache: keys")
    other = random_lm("llama", num_key_value_heads=4)
    refused(lambda: npllm.steps(other, [1], cache=kv()), r"cache: keys\[0\]: expected .* of shape \(4, 20, 8\), got ")


def test_a_model():
    for lm in MODELS:
        check_model_is_refused(lm)


def check_model_is_refused(lm):
    calls = [
        lambda: npllm.generate(lm, [1]),
        lambda: npllm.steps(lm, [1]),
        lambda: list(npllm.stream(lm, "a")),
        lambda: npllm.forward([1], lm),
        lambda: npllm.transform(np.array([1]), lm),
        lambda: npllm.lm_head(HIDDEN, lm),
        lambda: draft_model(lm),
        lambda: Chat(lm),
        lambda: classify(lm, [1]),
        lambda: classify_tokens(lm, [1]),
        lambda: [*evaluate(lm, [1, 2])],
        lambda: [*reference(lm, [1, 2])],
        lambda: without_layers(lm, [1]),
        lambda: trace(lm, [1]),
    ]
    for call in calls:
        refused(call, "lm: expected ", "draft model: expected ")


ONE_CALL = {
    "hidden": [lambda v: npllm.lm_head(v, LM), None, 5, "ab", [1.0], HIDDEN[..., :3], HIDDEN.astype(int)],
    "prompt_lookup": [prompt_lookup, 0, 65, 2.5, "4", None, True, [4], math.nan, HUGE],
    "draft_tokens": [lambda v: draft_model(LM, v), 0, 65, 2.5, "4", None, True],
    "counts": [lambda v: prompt_lookup(4, v), 5, [], "counts", True],
    "window": [lambda v: [*evaluate(LM, [1, 2, 3], v, 1)], 1, 65, 2.0, "8", None, True, [8], math.nan, HUGE],
    "stride": [lambda v: [*evaluate(LM, [1, 2, 3], 8, v)], 0, 8, 2.0, "4", None, True],
    "against": [lambda v: [*evaluate(LM, [1, 2, 3], 8, 4, v)], 5, "float32", [], LM],
    "capacity": [lambda v: pack([[1]], v), 0, -1, 2.0, "8", None, True, [8], np.array([8])],
    "lengths": [lambda v: first_fit(v, 8), None, 5, [1.0], ["1"], [None], "12", [True], {1}],
    "documents?": [lambda v: pack(v, 8), None, 5, [5], [[1.5]], ["ab"], [None], "ab", [{1}], [[]], [[1] * 9], [[True]]],
    "part": [lambda v: without_layers(LM, [1], v), None, 5, "norm", [], "attention.q"],
    "into": [npllm.record, None, [], 5, "seen"],
    "only": [lambda v: npllm.record({}, v), None, 5, ["norm"], b"norm"],
    "changes": [npllm.patch, None, 5, "norm", [("norm", 1)], {5: 1}, {None: 1}],
    "tap": [lambda v: npllm.patch({}, v), None, 5, "record"],
    "chunks": [lambda v: trace(LM, [1, 2], chunks=v), 5, "11", [1.0, 1.0], [3], [0, 2], [True, True], {1}],
    "name": [npllm.load, 5, 1.5, b"path", True, ["a"], LM],
    "device": [lambda v: npllm.load(device=v), None, 5, b"cpu", ["cpu"], True, "gpu"],
    "dtype": [lambda v: npllm.load(dtype=v), None, 5, [], {}, np.float32, "float8"],
    "revision": [lambda v: npllm.load("org/m", revision=v), 5, b"main", True, ["main"]],
    "cache_dir": [lambda v: npllm.load("org/m", cache_dir=v), 5, True, ["a"]],
    "offline": [lambda v: npllm.load(offline=v), None, 1, "no"],
    "progress": [lambda v: npllm.load(progress=v), None, 1, "no"],
    "kernels": [lambda v: npllm.load(kernels=v), None, 1, "no"],
    "task": [lambda v: npllm.pipeline(v, LM), None, 5, "chat", []],
    "model": [lambda v: npllm.pipeline("text-generation", v), 5, b"a", [], True],
    "tokenizer": [lambda v: npllm.pipeline("text-generation", LM, v), 5, "gpt2", LM],
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_CALL)
def test_an_argument_of_one_call(name):
    call, *values = ONE_CALL[name]
    for value in values:
        refused(lambda value=value: call(value), rf"{name}( \d+)?(\[\d\])?: expected ", r"document \d: ")


TALK = {
    "system": [lambda lm, v: Chat(lm, v), 5, b"a", [], True],
    "cache_dtype": [lambda lm, v: Chat(lm, None, v), None, 5, "int8", []],
    "text": [lambda lm, v: [*Chat(lm).reply(v)], None, 5, b"a", [], ["a"], True],
    "max_new_tokens": [lambda lm, v: [*Chat(lm).reply("a", max_new_tokens=v)], None, 0, 2.5, "3", True, math.nan],
    "temperature": [lambda lm, v: [*Chat(lm).reply("a", temperature=v)], None, "1", HUGE, np.ones(2)],
    "return_full_text": [lambda lm, v: npllm.pipeline("text-generation", lm, return_full_text=v)("a"), 1, "no"],
    "do_sample": [lambda lm, v: npllm.pipeline("text-generation", lm, do_sample=v)("a"), 1, "no"],
    "num_return_sequences": [
        lambda lm, v: npllm.pipeline("text-generation", lm, do_sample=True)("a", num_return_sequences=v),
        0, -1, 1.5, "2", True, [2],
    ],
    "seed": [lambda lm, v: npllm.pipeline("text-generation", lm, do_sample=True)("a", seed=v), -1, 1.5, "1", True, [1]],
    "max_new_tokens ": [lambda lm, v: npllm.pipeline("text-generation", lm)("a", max_new_tokens=v), 0, 2.5, "3"],
    "prompts": [lambda lm, v: npllm.pipeline("text-generation", lm)(v), None, 5, b"a", {"a": 1}, [b"a"], {"a"}],
}  # fmt: skip


@pytest.mark.parametrize("name", TALK)
def test_an_argument_of_a_call_with_text(talker, name):
    call, *values = TALK[name]
    for value in values:
        refused(lambda value=value: call(talker, value), f"{name.strip()}: expected ")


def test_a_refused_turn_leaves_the_conversation_as_it_was(talker):
    chat = Chat(talker)
    list(chat.reply("a", max_new_tokens=3))
    before = (list(chat.messages), list(chat.cached_ids), chat.cache["length"])
    for options in ({"max_new_tokens": None}, {"temperature": "1"}, {"stop": 5}, {"seed": -1}):
        refused(lambda options=options: list(chat.reply("b", **options)), *options)
        assert chat.messages == before[0]
        assert chat.cached_ids == before[1][: chat.cache["length"]]
    assert "".join(step.text for step in chat.reply("b", max_new_tokens=3)) is not None


# What is accepted, and computed as Python's own


@pytest.mark.parametrize(
    "ids",
    [(1, 2), range(1, 3), deque([1, 2]), np.array([1, 2]), np.array([1, 2], np.int8), np.array([1, 2], np.uint64),
     [np.int64(1), np.int8(2)], [np.array(1), 2], memoryview(np.array([1, 2]))],
)  # fmt: skip
def test_a_prompt_may_be_any_sequence_of_whole_numbers(ids):
    expected = npllm.generate(LM, [1, 2], max_new_tokens=4)
    assert npllm.generate(LM, ids, max_new_tokens=4) == expected
    assert all(type(i) is int for i in npllm.generate(LM, ids, max_new_tokens=1).prompt_ids)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.array])
def test_a_count_may_be_numpys_and_does_not_overflow(kind):
    ids = [1, 2, 3] * 10
    lm = random_lm("llama", max_position_embeddings=400, num_hidden_layers=1)
    made = npllm.generate(lm, ids, max_new_tokens=kind(120), top_k=kind(5), seed=kind(3), temperature=1.0)
    assert made == npllm.generate(lm, ids, max_new_tokens=120, top_k=5, seed=3, temperature=1.0)
    assert len(made.ids) == 120


@pytest.mark.parametrize("kind", [float, np.float32, np.float64, np.float16, np.array, Fraction])
def test_a_number_may_be_numpys_and_does_not_widen_the_logits(kind):
    options = {"temperature": 0.5, "top_p": 0.75, "min_p": 0.125, "repetition_penalty": 1.25}
    expected = npllm.generate(LM, [1, 2], seed=1, max_new_tokens=8, **options)
    assert npllm.generate(LM, [1, 2], seed=1, max_new_tokens=8, **{n: kind(v) for n, v in options.items()}) == expected


@pytest.mark.parametrize("stop", [None, (), [], set()])
def test_no_stop_string_may_be_none_or_empty(talker, stop):
    expected = npllm.generate(talker, "a", max_new_tokens=5)
    assert npllm.generate(talker, "a", max_new_tokens=5, stop=stop) == expected
    assert npllm.pipeline("text-generation", talker, max_new_tokens=5, stop=stop)("a")


def test_one_stop_string_is_a_list_of_one(talker):
    text = npllm.generate(talker, "a", max_new_tokens=8).text
    for stop in (text[2:4], [text[2:4]], {text[2:4]}, (np.str_(text[2:4]),)):
        assert npllm.generate(talker, "a", max_new_tokens=8, stop=stop).text == text[: text.index(text[2:4])]


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint8, np.uint64])
def test_an_array_of_ids_may_have_any_integers(dtype):
    expected = npllm.forward([1, 2], LM)[0]
    np.testing.assert_array_equal(npllm.forward(np.array([1, 2], dtype), LM)[0], expected)


def test_a_length_may_be_numpys():
    cache = kv()
    npllm.forward([1, 2], LM, cache)
    cache["length"] = np.int64(2)
    assert npllm.generate(LM, [1, 2, 3], max_new_tokens=3, cache=cache) == npllm.generate(
        LM, [1, 2, 3], max_new_tokens=3
    )


# One cache for two generations


def test_a_generation_notices_that_another_has_taken_its_cache():
    cache = kv()
    first, second = (npllm.steps(LM, ids, max_new_tokens=5, cache=cache) for ids in ([1, 2], [3, 4]))
    assert [step.id for step in second] == npllm.generate(LM, [3, 4], max_new_tokens=5).ids
    with pytest.raises(UsageError, match=r"^cache: expected one that only this generation uses"):
        next(first)


def test_the_newer_of_two_generations_goes_on():
    cache = kv()
    first = npllm.steps(LM, [1, 2], max_new_tokens=5, cache=cache)
    next(first)
    second = npllm.steps(LM, [3, 4], max_new_tokens=5, cache=cache)
    made = [next(second).id]
    with pytest.raises(UsageError, match="another call has changed"):
        next(first)
    assert made + [step.id for step in second] == npllm.generate(LM, [3, 4], max_new_tokens=5).ids


def test_a_generation_notices_a_pass_that_lengthens_its_cache():
    cache = kv()
    made = npllm.steps(LM, [1, 2], max_new_tokens=5, cache=cache)
    next(made)
    npllm.forward([5, 6], LM, cache)
    with pytest.raises(UsageError, match="another call has changed"):
        next(made)


def test_generations_one_after_the_other_share_a_cache():
    cache = kv()
    first = npllm.generate(LM, [1, 2], max_new_tokens=3, cache=cache)
    text = [1, 2, *first.ids]
    assert npllm.generate(LM, text, max_new_tokens=3, cache=cache) == npllm.generate(LM, text, max_new_tokens=3)


# Very long runs


def test_a_count_without_end_is_cut_by_the_context_alone():
    with pytest.warns(UserWarning, match="only 61 new tokens"):
        made = npllm.generate(LM, [1, 2, 3], max_new_tokens=2**63)
    assert len(made.ids) == 61


def test_an_absurd_context_allocates_nothing():
    lm = LM._replace(config=dataclasses.replace(LM.config, max_position_embeddings=10**12))
    assert len(npllm.generate(lm, [1, 2], max_new_tokens=3).ids) == 3
    chat_like = npllm.steps(lm, [1, 2], max_new_tokens=3, cache=kv())
    assert len([*chat_like]) == 3
    with pytest.raises(npllm.errors.NotEnoughMemoryError, match="KV cache"):
        npllm.steps(lm, [1, 2], max_new_tokens=10**11)


# The functions


def test_a_value_is_shown_in_one_short_line():
    values = [10**5000, [10**5000], "a\nb" * 999, np.zeros((99, 99)), list(range(9**5)), {"a": "b" * 999}, b"x" * 999]
    for value in values:
        assert len(shown(value)) < 200
        assert "\n" not in shown(value)
    assert shown(10**400) == "an integer of 1329 bits"


def test_what_numpy_wraps_is_unwrapped():
    assert [type(plain(value)) for value in (np.int8(3), np.array(2.5), np.bool_(True), 3)] == [int, float, bool, int]
    array = np.zeros(2)
    assert plain(array) is array
    assert token_ids(np.array([1, 2], np.int8)) == [1, 2]


def test_a_check_that_is_false_for_nan_refuses_what_float64_cannot_hold():
    with pytest.raises(UsageError, match=r"^x: expected a number, got an integer of 1329 bits$"):
        checked("x", HUGE, Real, lambda x: x < math.inf, "a number")
