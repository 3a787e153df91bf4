"""The chapter's pipeline call: its arguments, its results, and its agreement with transformers' own."""

import importlib
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
from bridge import tool
from checkpoints import END, TOKENS, write_folder
from default_model import needs_default_model
from hypothesis import given
from hypothesis import strategies as st
from tolerance import assert_close

import npllm
from npllm.errors import ModelFileError, UsageError
from npllm.inspect.funnel import funnel
from npllm.sampling import choose

loop = importlib.import_module("npllm.loop")
module = importlib.import_module("npllm.apps.pipeline")
ASKED = [{"role": "user", "content": "Hello, you!"}]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "and then 12?"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    write_folder(path, max_position_embeddings=512)
    return path


@pytest.fixture(scope="module")
def lm(folder):
    return npllm.load(folder)


def text_of(results):
    [result] = results
    assert set(result) == {"generated_text"}
    return result["generated_text"]


# What it returns


def test_the_call_of_the_chapter(lm):
    generator = npllm.pipeline(
        "text-generation",
        model=lm,
        tokenizer=lm.tokenizer,
        return_full_text=False,
        max_new_tokens=50,
        do_sample=False,
    )
    prompt = "Write an email apologizing to Sarah for the tragic gardening mishap. Explain how it happened."
    output = generator(prompt)
    assert output == [{"generated_text": npllm.generate(lm, prompt, max_new_tokens=50).text}]


def test_the_full_text_is_prompt_and_continuation(lm):
    generator = npllm.pipeline("text-generation", lm, max_new_tokens=8)
    assert text_of(generator("Hello")) == "Hello" + npllm.generate(lm, "Hello", max_new_tokens=8).text
    assert text_of(generator("Hello", return_full_text=True)) == text_of(generator("Hello"))


@pytest.mark.slow
@given(prompts=st.lists(st.sampled_from(["Hello", "and 12", ASKED, TALK]), max_size=3), full=st.booleans())
def test_a_list_of_prompts_gives_what_each_gives_alone(lm, prompts, full):
    generator = npllm.pipeline("text-generation", lm, max_new_tokens=3, return_full_text=full)
    assert generator(prompts) == [generator(prompt) for prompt in prompts]
    assert generator(tuple(prompts)) == generator(prompts)


def test_several_prompts_with_several_continuations(lm):
    options = {"max_new_tokens": 4, "do_sample": True, "seed": 1, "num_return_sequences": 2}
    prompts, generator = ["Hello", TALK], npllm.pipeline("text-generation", lm, **options)
    assert generator(prompts, batch_size=3) == [generator(prompt) for prompt in prompts]


def test_tokens_are_ruled_out_for_each_prompt(lm):
    free = [npllm.generate(lm, prompt, max_new_tokens=1).ids[0] for prompt in ("Hello", "Why")]
    ruled = lm._replace(generation_config={"begin_suppress_tokens": free})
    generator = npllm.pipeline("text-generation", ruled, max_new_tokens=3, return_full_text=False)
    made = generator(["Hello", "Why"])
    assert made == [generator("Hello"), generator("Why")]
    assert text_of(made[0]) != npllm.generate(lm, "Hello", max_new_tokens=3).text


@pytest.mark.parametrize("messages", [ASKED, TALK], ids=["asked", "talk"])
def test_a_conversation_gets_the_assistants_turn(lm, messages):
    before = [dict(message) for message in messages]
    generator = npllm.pipeline("text-generation", lm, max_new_tokens=8)
    reply = npllm.generate(lm, lm.tokenizer.chat_ids(messages), max_new_tokens=8).text
    assert text_of(generator(messages, return_full_text=False)) == reply
    assert text_of(generator(messages)) == [*messages, {"role": "assistant", "content": reply}]
    assert messages == before


def test_an_option_of_the_call_holds_for_that_call(lm):
    generator = npllm.pipeline("text-generation", lm, max_new_tokens=8, return_full_text=False)
    eight = generator("Hello")
    assert generator("Hello", max_new_tokens=3) == [
        {"generated_text": npllm.generate(lm, "Hello", max_new_tokens=3).text}
    ]
    assert generator("Hello") == eight
    assert generator("Hello", stop=eight[0]["generated_text"][3:5]) != eight


def test_without_the_cache_the_text_is_the_same(lm):
    generator = npllm.pipeline("text-generation", lm, max_new_tokens=5)
    assert generator("Hello", use_cache=False) == generator("Hello")


def test_a_folder_is_loaded(lm, folder):
    expected = npllm.pipeline("text-generation", lm, max_new_tokens=5)("Hello")
    assert npllm.pipeline("text-generation", model=folder, max_new_tokens=5)("Hello") == expected
    assert npllm.pipeline("text-generation", model=str(folder), max_new_tokens=5)("Hello") == expected


def test_a_tokenizer_takes_the_place_of_the_models(lm):
    bare = lm._replace(tokenizer=None)
    generator = npllm.pipeline("text-generation", bare, tokenizer=lm.tokenizer, max_new_tokens=5)
    assert generator("Hello") == npllm.pipeline("text-generation", lm, max_new_tokens=5)("Hello")
    generator = npllm.pipeline("text-generation", bare, max_new_tokens=5)
    for prompt in ("Hello", ASKED):
        with pytest.raises(ModelFileError, match=r"no tokenizer\.json"):
            generator(prompt)


def test_special_tokens_are_no_text(lm, monkeypatch):
    made = iter([TOKENS.index("<|user|>"), TOKENS.index("a"), END])
    monkeypatch.setattr(loop, "choose", lambda *_, **__: np.asarray(next(made)))
    assert npllm.pipeline("text-generation", lm, return_full_text=False)("Hello") == [{"generated_text": "a"}]


# Sampling


@pytest.fixture
def asked(monkeypatch):
    """The options passed to the loop."""
    seen = []

    def looking(lm, requests, batch_size):
        seen.extend(request.options for request in requests)
        return [npllm.generate(lm, request.ids, **{**request.options, "max_new_tokens": 1}) for request in requests]

    monkeypatch.setattr(module, "generate_all", looking)
    return seen


def test_the_defaults_are_transformers_but_greedy(lm, asked):
    generator = npllm.pipeline("text-generation", lm)
    generator("Hello")
    generator("Hello", do_sample=True)
    drawn = {"max_new_tokens": 256, "repetition_penalty": 1.0, "seed": None}
    drawn |= {"temperature": 0.7, "top_k": 50, "top_p": 1.0, "min_p": 0.0}
    assert asked == [drawn | {"temperature": 0.0}, drawn]


def test_generation_config_comes_before_the_defaults_and_an_option_before_both(lm, asked):
    theirs = {"temperature": 0.6, "top_k": 20, "top_p": None, "max_new_tokens": 99, "repetition_penalty": 1.1}
    generator = npllm.pipeline("text-generation", lm._replace(generation_config=theirs), top_k=30, do_sample=True)
    generator("Hello", temperature=0.8, seed=4)
    drawn = {"temperature": 0.8, "top_k": 30, "top_p": 1.0, "min_p": 0.0}
    assert asked == [{"max_new_tokens": 99, "repetition_penalty": 1.1, "seed": 4} | drawn]


def test_greedy_decoding_keeps_the_repetition_penalty_of_generation_config(lm, asked):
    theirs = {"temperature": 0.6, "repetition_penalty": 1.1, "do_sample": True}
    npllm.pipeline("text-generation", lm._replace(generation_config=theirs))("Hello")
    assert (asked[0]["temperature"], asked[0]["repetition_penalty"]) == (0.0, 1.1)


def test_several_continuations_are_each_drawn_anew(lm):
    generator = npllm.pipeline("text-generation", lm, do_sample=True, max_new_tokens=20, return_full_text=False)
    results = generator("Hello", num_return_sequences=3, seed=7)
    assert results == generator("Hello", num_return_sequences=3, seed=7)
    assert len({result["generated_text"] for result in results}) == 3
    assert results[1:] == generator("Hello", num_return_sequences=2, seed=8)
    assert generator(["Hello", "Hello"], seed=7) == [results[:1], results[:1]]
    assert len({text_of(generator("Hello")) for _ in range(3)}) == 3


@pytest.mark.parametrize(("name", "value"), [("temperature", 1.0), ("top_k", 1), ("top_p", 1.0), ("min_p", 1.0)])
def test_a_sampling_option_without_do_sample_is_warned_of(lm, name, value):
    generator = npllm.pipeline("text-generation", lm, max_new_tokens=3)
    with pytest.warns(UserWarning, match=f"without do_sample=True, {name} has no effect"):
        results = generator("Hello", **{name: value})
    assert results == generator("Hello")


def test_token_ids_are_a_prompt_too(lm):
    generator = npllm.pipeline("text-generation", lm, max_new_tokens=4)
    ids = lm.tokenizer.encode("Hello")
    expected = generator("Hello")
    for prompt in (ids, tuple(ids), np.asarray(ids)):
        assert generator(prompt) == expected
    assert generator(["Hello", ids, ASKED]) == [expected, expected, generator(ASKED)]
    assert repr(generator) == "TextGeneration(phi3, max_new_tokens=4)"


# What is refused


@pytest.mark.parametrize(
    ("task", "model", "more", "message"),
    [
        ("text-classification", None, {}, "got 'text-classification'; npllm.apps.classify classifies$"),
        ("ner", None, {}, "got 'ner'; npllm.apps.classify classifies$"),
        ("fill-mask", None, {}, "task: expected text-generation, got 'fill-mask'; npllm.fill fills masks$"),
        ("summarization", None, {}, "task: expected text-generation, got 'summarization'$"),
        ("text-generation", 3, {}, "model: expected what npllm.load takes or returns, got int"),
        ("text-generation", "LM", {"tokenizer": "gpt2"}, r"tokenizer: expected npllm.load\(...\).tokenizer, got str"),
        ("text-generation", "LM", {"device_map": "cuda"}, r"device_map: .*npllm.load\(name, device="),
        ("text-generation", "LM", {"torch_dtype": "auto"}, r"torch_dtype: .*npllm.load\(name, device="),
        ("text-generation", "LM", {"trust_remote_code": True}, "trust_remote_code: .*leave it out"),
        ("text-generation", "LM", {"max_length": 20}, "max_length: .*max_new_tokens"),
        ("text-generation", "LM", {"num_beams": 2}, "no such option; expected one of return_full_text, .*seed"),
    ],
)
def test_what_it_does_not_know_is_refused_before_anything_is_loaded(lm, task, model, more, message, monkeypatch):
    monkeypatch.setattr(module, "load", None)
    monkeypatch.setattr(jaxtyping.config, "off", True)  # the annotations are not enforced, as in normal use
    with pytest.raises(UsageError, match=message) as error:
        npllm.pipeline(task, model=lm if model == "LM" else model, **more)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (3, {}, "prompts: expected a text, token ids, messages, or a list of these, got 3"),
        ([1, "2"], {}, "prompt: expected a whole number as token 1, got '2'"),
        ([1, 10**6], {}, "token 1: expected an id from 0 to"),
        (["Hello", 3], {}, "prompts: expected"),
        ([[]], {}, "prompts: expected"),
        ([*ASKED, "Hello"], {}, "prompts: expected"),
        ("", {}, "^the prompt is empty"),
        (["Hello", ""], {}, "^prompt 1: the prompt is empty"),
        (["Hello", TALK[:3]], {}, "^prompt 1: messages: expected the last turn"),
        ("Hello", {"batch_size": 0}, "batch_size: expected 1 or more, got 0"),
        ("Hello", {"beams": 2}, "beams: no such option"),
        ("Hello", {"max_new_tokens": 0}, "max_new_tokens: expected at least 1"),
        ("Hello", {"num_return_sequences": 2}, "num_return_sequences: expected 1, because"),
        ("Hello", {"num_return_sequences": 0, "do_sample": True}, "num_return_sequences: expected at least 1, got 0"),
        ([{"role": "user"}], {}, "messages: expected strings under role and content"),
        (TALK[:3], {}, "messages: expected the last turn to be another's"),
    ],
)
def test_a_prompt_or_option_that_cannot_be_used_is_refused(lm, prompts, options, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "off", True)  # else the tests' own check of types may refuse it first
    with pytest.raises(UsageError, match=message):
        npllm.pipeline("text-generation", lm, max_new_tokens=2)(prompts, **options)


def test_a_generation_config_that_is_wrong_is_refused(lm):
    generator = npllm.pipeline("text-generation", lm._replace(generation_config={"top_k": "many"}))
    with pytest.raises(ModelFileError, match=r"generation_config\.json: top_k: expected a number, got 'many'"):
        generator("Hello")


# Compared with transformers


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[oracle]'")
    found = pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[oracle]'")
    found.utils.logging.disable_progress_bar()
    return found


@pytest.fixture(scope="module")
def theirs(transformers, folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def of_the_default_model(transformers):
    lm = npllm.load(dtype="float32")
    model = tool("bench_worker").in_transformers(lm)
    tokenizer = tool("make_tokenizer_golden").default_tokenizer()
    return lm, transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)


CALLS = [
    ("Hello", {}),
    ("Hello", {"return_full_text": False}),
    ("and the\n12<|end|> ", {"return_full_text": False}),
    (["Hello", "and then"], {}),
    (["Hello"], {"return_full_text": False}),
    (ASKED, {}),
    (TALK, {"return_full_text": False}),
    ([ASKED, TALK], {}),
    ("Hello", {"max_new_tokens": 3}),
    ("Hello", {"repetition_penalty": 1.4}),
    ("Hello", {"use_cache": False}),
]


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")  # transformers issues warnings of its own
class TestBesideTransformers:
    """The same call in transformers."""

    @pytest.mark.parametrize(("prompts", "options"), CALLS)
    def test_a_tiny_model(self, lm, theirs, prompts, options):
        options = {"max_new_tokens": 20, "do_sample": False} | options
        assert npllm.pipeline("text-generation", lm)(prompts, **options) == theirs(prompts, **options)

    @needs_default_model
    @pytest.mark.parametrize(("prompts", "options"), CALLS)
    def test_the_default_model(self, of_the_default_model, prompts, options):
        lm, theirs = of_the_default_model
        options = {"max_new_tokens": 12, "do_sample": False} | options
        assert npllm.pipeline("text-generation", lm)(prompts, **options) == theirs(prompts, **options)

    @pytest.mark.parametrize(
        "options", [{}, {"temperature": 1.3, "top_k": 7}, {"top_p": 0.6, "min_p": 0.1, "repetition_penalty": 1.2}]
    )
    def test_what_it_draws_from(self, lm, theirs, options, monkeypatch):
        """Drawn tokens cannot be compared, but the filtered logits can."""
        left = []

        def looking(logits, **options):
            left.append(funnel(logits, **options)[-2].logits)
            return choose(logits, **options)

        monkeypatch.setattr(loop, "choose", looking)
        options = {"max_new_tokens": 1, "do_sample": True} | options
        npllm.pipeline("text-generation", lm)("Hello", **options)
        [result] = theirs("Hello", return_dict_in_generate=True, output_scores=True, **options)
        [expected] = np.array(result["scores"], dtype=np.float32)
        np.testing.assert_array_equal(np.isfinite(left[0]), np.isfinite(expected))
        assert_close("logits", left[0], expected, where=np.isfinite(expected))

    def test_the_space_before_a_word_is_lost_there(self, transformers, tmp_path):
        """For tokenizers that drop the first space of a text, like those of Llama and Phi-3."""
        write_folder(tmp_path / "llama", vocab_size=1024)
        for file in (Path(__file__).parent / "golden" / "tokenizer-llama").iterdir():
            (tmp_path / "llama" / file.name).write_bytes(file.read_bytes())
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "llama", dtype="float32")
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "llama")
        options = {"max_new_tokens": 1, "do_sample": False, "return_full_text": False}
        theirs = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer, **options)
        ours = npllm.pipeline("text-generation", npllm.load(tmp_path / "llama"), **options)
        texts = [(text_of(ours(letter)), text_of(theirs(letter))) for letter in "abcdefghijklmnopqrstuvwxyz"]
        assert any(text.startswith(" ") for text, _ in texts)
        assert all(text.removeprefix(" ") == other for text, other in texts)

    def test_more_than_one_continuation_without_sampling_is_refused_there_too(self, theirs):
        with pytest.raises(ValueError, match="num_return_sequences"):
            theirs("Hello", do_sample=False, num_return_sequences=2)
