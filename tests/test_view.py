"""npllm.look: each view is what the functions of inspect/ compute, with labels; bad input gets one line."""

import copy

import families
import numpy as np
import pytest
from checkpoints import byte_tokenizer
from default_model import default_lm, needs_default_model
from models import random_weights, tiny_config
from tolerance import assert_close

import npllm
from npllm.errors import ModelFileError, UsageError
from npllm.inspect.attribution import attribution
from npllm.inspect.edits import Edit, edit_tap
from npllm.inspect.heads import KINDS, head_scores, without_first_token
from npllm.inspect.lens import logit_lens
from npllm.inspect.look import look as look_at
from npllm.inspect.patching import patching_grid
from npllm.inspect.record import record
from npllm.inspect.tokens import named_token
from npllm.lm import LM
from npllm.sampling import softmax

IDS = [3, 1, 4, 1, 5, 9]
DECODERS = ["llama", "gpt2", "gemma3_text", "mixtral", "phi3small"]
each_decoder = pytest.mark.parametrize("name", DECODERS)


def tiny_lm() -> LM:
    """A tiny model with the tests' byte-level tokenizer."""
    config = tiny_config(vocab_size=len(byte_tokenizer()), max_position_embeddings=64)
    return LM(config, random_weights(config), byte_tokenizer(), {})


@pytest.fixture(scope="module")
def r():
    return npllm.look(tiny_lm(), "Hello there")


@each_decoder
def test_each_view_is_what_inspect_computes(name):
    lm = families.random_lm(name)
    r, everything = npllm.look(lm, IDS), {}
    npllm.forward(np.asarray(IDS), lm, tap=record(everything))
    np.testing.assert_array_equal(r.logits, everything["logits"])
    weights = np.stack([everything[f"layers.{i}.attention.weights"] for i in range(4)])
    np.testing.assert_array_equal(r.attention(2, 3), weights[2, 3])
    np.testing.assert_array_equal(r.attention(2), weights[2])
    np.testing.assert_array_equal(r.attention(head=1), weights[:, 1])
    np.testing.assert_array_equal(r.attention(), weights)
    np.testing.assert_array_equal(r.attention(2, 3, first_token=False), without_first_token(weights[2, 3]))
    before = softmax(everything["logits"].astype(np.float64))
    assert np.isnan(r.logprobs[0])
    assert_close("logprobs", r.logprobs.array[1:], np.log(before[np.arange(5), IDS[1:]]).astype(np.float32))
    assert r.next.labels[0][0] == f"#{before[-1].argmax()}"
    assert r.next[0] == pytest.approx(before[-1].max(), rel=1e-4)
    assert r.probability(7) == pytest.approx(before[-1, 7], rel=1e-4)
    scores = head_scores(lm, look_at(lm, IDS))
    for kind in KINDS:
        np.testing.assert_array_equal(r.heads()[kind], getattr(scores, kind))
    for view in (r, r.attention(), r.lens(), r.heads(), r.change, r.without(attention=1)):
        assert max(map(len, repr(view).splitlines())) <= 120
        assert len(repr(view).splitlines()) <= 40


@each_decoder
def test_the_lens_is_that_of_every_block_at_every_token(name):
    lm = families.random_lm(name)
    r = npllm.look(lm, IDS)
    assert r.lens().shape == (5, 6)
    after = look_at(lm, IDS).values
    last = families.family_of(lm.config).stream[1]
    shares = softmax(logit_lens(after[f"layers.1.{last}"], lm))
    assert_close("likeliest", r.lens().array[2], shares.max(axis=-1))
    assert r.lens().words[2].tolist() == [f"#{i}" for i in shares.argmax(axis=-1)]
    assert_close("one token", r.lens(5).array[2], shares[:, 5])
    assert r.lens()["block 1"].names == ("token",)


@each_decoder
def test_contributions_sum_to_the_logit_also_of_a_changed_run(name):
    r = npllm.look(families.random_lm(name), IDS)
    for run in (r, r.without(head=(1, 2), feedforward=[0, 3])):
        found, expected = run.attribution(7), attribution(run.lm, IDS, 7, edits=run.edits)
        assert found.sum() == pytest.approx(expected.logit, abs=1e-4)
        np.testing.assert_array_equal(found.heads, expected.heads)
        np.testing.assert_array_equal(found.feedforward, expected.feedforward)
        assert found["head 1.2"] == expected.heads[1, 2]
        assert found["feedforward 3"] == expected.feedforward[3]
    assert r.attribution().title.startswith(f"contributions to the logit of '{r.next.labels[0][0]}', ")
    difference = attribution(r.lm, IDS, 7, against=5)
    assert r.attribution(7, against=5).sum() == pytest.approx(difference.logit, abs=1e-4)
    assert (", before its cap" in r.attribution(7).title) is (name == "gemma3_text")


@each_decoder
def test_a_run_without_a_part_is_the_pass_with_that_edit(name):
    lm = families.random_lm(name)
    r = npllm.look(lm, IDS)
    edits = [Edit(1, "head", 2), Edit(0, "attention"), Edit(3, "feedforward")]
    expected, _ = npllm.forward(IDS, lm, tap=edit_tap(lm, edits))
    in_two_steps = r.without(head=[(1, 2)]).without(attention=[0], feedforward=[3])
    for changed in (r.without(head=(1, 2), attention=0, feedforward=3), in_two_steps):
        np.testing.assert_array_equal(changed.logits, expected)
        assert changed.original is r
        at = [int(label[1:]) for label in changed.change.labels[0]]
        assert_close("before", changed.change.array[:, 0], softmax(r.logits[-1])[at])
        assert_close("after", changed.change.array[:, 1], softmax(expected[-1])[at])
    half, _ = npllm.forward(IDS, lm, tap=edit_tap(lm, [Edit(1, "head", 2, 0.5)]))
    np.testing.assert_array_equal(r.without(head=(1, 2), scale=0.5).logits, half)
    assert r.change.array[0, 0] == r.change.array[0, 1] == r.next[0]


def test_values_of_another_text_are_patched_in():
    lm, other = families.random_lm("llama"), [3, 1, 4, 1, 19, 9]
    r, source = npllm.look(lm, IDS), npllm.look(lm, other)
    answer, own = int(source.logits[-1].argmax()), int(r.logits[-1].argmax())
    expected = patching_grid(lm, other, IDS, answer, against=own)
    for given in (source, other):
        np.testing.assert_array_equal(r.patched_from(given), expected)
    assert expected[-1, -1] == pytest.approx(1)
    of_token = patching_grid(lm, other, IDS, own, "attention")
    np.testing.assert_array_equal(r.patched_from(other, own, part="attention"), of_token)
    assert r.patched_from(source).title == f"how much of '#{answer}' over '#{own}' the other text's residual restores"
    with pytest.raises(UsageError, match="patched_from: expected a view of the same model"):
        r.patched_from(npllm.look(families.random_lm("llama", seed=1), other))
    with pytest.raises(UsageError, match="expected views without edits"):
        r.without(head=(0, 0)).patched_from(source)
    with pytest.raises(UsageError, match="same number of tokens, got 5 and 6"):
        r.patched_from(other[:5])


def test_a_prompt_is_text_ids_or_a_chat(r):
    lm = r.lm
    ids = lm.tokenizer.encode("Hello there")
    assert r.ids == npllm.look(lm, ids).ids == npllm.look(lm, np.array(ids)).ids == ids
    assert "".join(r.tokens) == "Hello there"
    said = [{"role": "user", "content": "Hi"}]
    assert npllm.look(lm, said).ids == lm.tokenizer.chat_ids(said)
    assert npllm.look(lm, [5]).logprobs.shape == (1,)
    for empty in ("", [], ()):
        with pytest.raises(UsageError, match="the prompt is empty"):
            npllm.look(lm, empty)
    with pytest.raises(UsageError, match="the prompt is too long: 65 tokens"):
        npllm.look(lm, [1] * 65)
    with pytest.raises(UsageError, match="prompt: expected a text or a list of token ids, got 7"):
        npllm.look(lm, 7)
    with pytest.raises(UsageError, match="lm: expected a model"):
        npllm.look("gpt2", "Hello")


def test_what_needs_a_tokenizer_says_so_and_the_rest_works_without():
    lm = families.random_lm("llama")
    assert npllm.look(lm, IDS).tokens == ["#3", "#1", "#4", "#1", "#5", "#9"]
    with pytest.raises(ModelFileError, match="pass token ids"):
        npllm.look(lm, "Hello")
    with pytest.raises(UsageError, match="expected token ids, because the model has no tokenizer, got messages"):
        npllm.look(lm, [{"role": "user", "content": "Hi"}])
    with pytest.raises(UsageError, match="token: expected an id, because the model has no tokenizer, got ' Paris'"):
        npllm.look(lm, IDS).probability(" Paris")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.attention(2, 0), r"layer: expected 0 to 1 \(there are 2 layers\), got 2"),
        (lambda r: r.attention(0, 4), r"head: expected 0 to 3 \(there are 4 heads\), got 4"),
        (lambda r: r.attention(0, -1), r"head: expected 0 to 3 \(there are 4 heads\), got -1"),
        (lambda r: r.without(), r"without: expected a part, such as head=\(5, 3\) or feedforward=1, got none"),
        (lambda r: r.without(head=(5, 3)), "edit of head: layer: expected 0 to 1"),
        (lambda r: r.without(head=[(1, 3), (1, 4)]), "edit of layer 1: head: expected 0 to 3"),
        (lambda r: r.without(neuron=(1, 6)), "edit of layer 1: neuron: expected 0 to 5"),
        (lambda r: r.without(feedforward=2), "edit of feedforward: layer: expected 0 to 1"),
        (lambda r: r.without(attention=0, scale=np.nan), "scale: expected a finite number, got nan"),
        (lambda r: r.lens("Hello"), "token: expected one token, got 'Hello', which is 5: 'H', 'e', 'l', 'l', 'o'"),
        (lambda r: r.attribution(10**6), "token: expected 0 to "),
        (lambda r: r.show("lenses"), "only: expected a list of 'tokens', "),
        (lambda r: r.show(head=(0, 9)), r"heads: expected layers that were looked at \(0 to 1\) and heads 0 to 3"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(r, call, message):
    with pytest.raises(UsageError, match=message) as caught:
        call(r)
    assert "\n" not in str(caught.value)


def test_a_token_is_named_as_it_stands_in_a_text(r):
    tokenizer = r.lm.tokenizer
    assert named_token(r.lm, "e") == tokenizer.encode("e")[0]
    assert named_token(r.lm, " ") == tokenizer.encode(" ")[0]
    assert named_token(r.lm, 7) == 7


def test_bert_shows_what_it_can_and_refuses_the_rest():
    lm = families.random_lm("bert")
    r = npllm.look(lm, IDS)
    assert r.attention(2, 3).shape == (6, 6)
    assert r.lens().shape == (5, 6)
    assert r.next.title == "token in place 5"
    assert not np.isnan(r.logprobs).any()
    assert r.without(attention=1).change.shape[1] == 2
    assert r._repr_html_() is None
    assert "6 tokens through 4 blocks (bert)" in repr(r)
    for refused in (r.attribution, r.show):
        with pytest.raises(UsageError, match="expected a model"):
            refused()


def test_a_view_shows_itself_as_text_and_in_a_frame(r):
    lines = repr(r).splitlines()
    assert lines[0] == "8 tokens through 2 blocks (llama): 'H' 'e' 'l' 'l' 'o' ' the' 'r' 'e'"
    assert lines[1] == "next token"
    assert lines[-1].startswith("more: .attention(layer, head)")
    assert r._repr_html_().startswith("<iframe ")
    changed = r.without(head=(1, 2))
    assert repr(changed).splitlines()[1] == "probability without head:1.2: next token x run, in %"
    assert changed._repr_html_().startswith("<figure ")
    half = r.without(head=(1, 2), scale=0.5)
    assert "with head:1.2=0.5" in repr(half)
    assert "with head:1.2=0.5, attention:0=0:" in repr(half.without(attention=0))
    assert "without head:1.2, attention:0:" in repr(changed.without(attention=0))
    long = npllm.look(r.lm, "a" * 60)
    assert max(map(len, repr(long).splitlines())) < 240
    assert copy.copy(r).ids == r.ids


@pytest.mark.slow
@needs_default_model
def test_a_students_tasks_are_one_line_each():
    r = npllm.look(default_lm(), "The capital of France is")
    assert r.attention(5, 3).labels == (tuple(r.tokens),) * 2
    assert r.lens()[-1, -1] == r.probability(" Paris") == pytest.approx(0.773, abs=0.002)
    assert r.lens().words[-1, -1] == " Paris"
    without = r.without(head=(23, 4))
    assert without.probability(" Paris") == pytest.approx(0.141, abs=0.002)
    assert without.change[" Paris", "original"] == r.next[" Paris"]
    with pytest.raises(UsageError, match=r"got 'Berlin', which is 2: 'Ber', 'lin'; did you mean ' Berlin'\?"):
        r.attribution("Berlin")
