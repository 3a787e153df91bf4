"""The parts of a logit sum to it, and each is what it would be if the others were taken away and the scale kept."""

import math

import numpy as np
import pytest
from default_model import default_lm, needs_default_model
from families import WRITERS, random_lm
from libraries import Library

import npllm
from npllm.errors import UsageError
from npllm.families import family_of
from npllm.inspect import attribution as module
from npllm.inspect.attribution import attribution, ranked_parts
from npllm.inspect.edits import Edit, Patch, edit_tap, other_values, patch_tap
from npllm.inspect.trace import trace

IDS, OTHER = [3, 1, 4, 1, 5, 9, 2], [2, 7, 1, 8, 2, 8, 1]
EDITS = [
    Edit(1, "attention", scale=0.5),
    Edit(2, "head", 1),
    Edit(0, "feedforward", scale=2.0),
    Edit(3, "head", 0, -1.0),
]


def check_sum(found):
    """The parts sum to the logit within 1e-4 of the largest part."""
    largest = max(abs(value) for _, value in ranked_parts(found))
    assert abs(found.total - found.logit) < 1e-4 * largest
    assert found.total == pytest.approx(sum(value for _, value in ranked_parts(found)))


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("position", [-1, 2])
def test_the_parts_sum_to_the_logit(name, position):
    lm = random_lm(name)
    found = attribution(lm, IDS, 6, position)
    check_sum(found)
    assert found.position == position % len(IDS)
    assert found.heads.shape == (4, 4)
    assert found.feedforward.shape == found.attention_bias.shape == (4,)
    if not found.capped:
        own = npllm.forward(IDS, lm)[0][position, 6]
        assert math.isclose(found.logit, own, rel_tol=1e-5)


@pytest.mark.parametrize("name", WRITERS)
def test_the_parts_sum_to_the_difference_of_two_logits(name):
    lm = random_lm(name)
    found, one, other = (
        attribution(lm, IDS, token, against=against) for token, against in ((6, 7), (6, None), (7, None))
    )
    check_sum(found)
    np.testing.assert_allclose(found.heads, one.heads - other.heads, atol=1e-4)
    assert math.isclose(found.logit, one.logit - other.logit, abs_tol=1e-4)


@pytest.mark.parametrize("name", WRITERS)
def test_the_parts_of_an_edited_run_sum_to_its_logit(name):
    lm = random_lm(name)
    found = attribution(lm, IDS, 6, edits=EDITS)
    check_sum(found)
    assert found.heads[2, 1] == 0
    if not found.capped:
        own = npllm.forward(IDS, lm, tap=edit_tap(lm, EDITS))[0][-1, 6]
        assert math.isclose(found.logit, own, rel_tol=1e-4, abs_tol=1e-5)


@pytest.mark.parametrize("name", WRITERS)
def test_a_patched_residual_stream_has_nothing_of_earlier_parts(name):
    lm = random_lm(name)
    patches = [Patch(1, 6), Patch(2, 6, "attention"), Patch(3, 2, "feedforward")]
    found = attribution(lm, IDS, 6, tap=patch_tap(lm, patches, other_values(lm, OTHER, patches)))
    check_sum(found)
    assert not found.heads[:2].any()
    assert not found.feedforward[:2].any()
    assert found.heads[2:].any()
    assert found.others["embedding"] == 0
    assert found.others["patches"] != 0


@pytest.mark.parametrize("name", WRITERS)
def test_each_head_and_network_is_what_the_stream_loses_without_it(name):
    """With the last norm's scale fixed, a part is the difference that leaving it out of the last sum makes."""
    lm = random_lm(name)
    family, last = family_of(lm.config), lm.config.num_hidden_layers - 1
    found, values = attribution(lm, IDS, 6), trace(lm, IDS)
    stream = values[f"layers.{last}.{family.stream[1]}"][-1].astype(np.float64)
    scale = np.sqrt(np.mean((stream - stream.mean() * (lm.weights.norm_bias is not None)) ** 2))

    def logit(vector):
        """The logit of a vector that the final norm divides by `scale`: the norm of one so long that eps is nothing."""
        centred = vector - vector.mean() * (lm.weights.norm_bias is not None)
        own = np.sqrt(np.mean(centred**2))
        normed = family.final_norm((1e4 * vector / own).astype(np.float32)[None], lm.weights, lm.config)[0]
        normed = normed - (0 if lm.weights.norm_bias is None else lm.weights.norm_bias)
        hidden = (normed * own / scale).astype(np.float32)
        head = family.uncapped_head or lm.lm_head
        bias = lm.weights._replace(lm_head_bias=None)
        return float(head(hidden[None], bias, lm.config)[0, 6])

    for layer in range(last + 1):
        network = values[f"layers.{layer}.{family.added[1]}"][-1].astype(np.float64)
        assert found.feedforward[layer] == pytest.approx(logit(network), rel=1e-3, abs=1e-3)
        whole = values[f"layers.{layer}.{family.added[0]}"][-1].astype(np.float64)
        of_layer = found.heads[layer].sum() + found.attention_bias[layer]
        assert of_layer == pytest.approx(logit(whole), rel=1e-3, abs=1e-3)


def test_a_head_alone_in_the_last_layer_is_found_by_switching_it_off():
    """In the last layer nothing comes after a head but its network, which is off here."""
    lm = random_lm("llama")
    off = [Edit(3, "feedforward")]
    found = attribution(lm, IDS, 6, edits=off)
    seen = {}
    npllm.forward(IDS, lm, tap=edit_tap(lm, off, npllm.record(seen, "layers.3.residual_after_feedforward")))
    stream = seen["layers.3.residual_after_feedforward"][-1].astype(np.float64)
    for head in range(4):
        without = {}
        both = [*off, Edit(3, "head", head)]
        npllm.forward(IDS, lm, tap=edit_tap(lm, both, npllm.record(without, "layers.3.residual_after_feedforward")))
        lost = stream - without["layers.3.residual_after_feedforward"][-1]
        eps = lm.config.rms_norm_eps
        expected = lost / np.sqrt(np.mean(stream**2) + eps) * lm.weights.norm @ lm.weights.lm_head[6]
        assert found.heads[3, head] == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["phimoe", "gpt2"])
def test_the_parts_are_the_same_on_every_library(lib: Library, name):
    lm = random_lm(name)
    on_library = lm._replace(weights=lib.tree(lm.weights))
    expected, found = attribution(lm, IDS, 6, edits=EDITS), attribution(on_library, IDS, 6, edits=EDITS)
    for one, other in zip(ranked_parts(found), ranked_parts(expected), strict=True):
        assert one == (other[0], pytest.approx(other[1], rel=1e-3, abs=1e-4))


def test_the_cap_of_gemma_2_is_left_out_and_said_so():
    lm = random_lm("gemma2")
    found, own = attribution(lm, IDS, 6), float(npllm.forward(IDS, lm)[0][-1, 6])
    assert found.capped
    cap = lm.config.final_logit_softcapping
    assert cap * math.tanh(found.logit / cap) == pytest.approx(own, rel=1e-5)
    near_zero = lm.weights.lm_head.copy()
    near_zero[6] *= 1e-4  # the cap changes its logit by less than float32 shows
    assert attribution(lm._replace(weights=lm.weights._replace(lm_head=near_zero)), IDS, 6).capped


@pytest.mark.parametrize("name", ["gemma3_text", "llama"])
def test_a_model_without_a_cap_has_none_however_its_logits_are_rounded(name, monkeypatch):
    original = module.head_of
    monkeypatch.setattr(module, "head_of", lambda *args: lambda vectors: original(*args)(vectors) * 1.0001)
    lm = random_lm(name, **{"final_logit_softcapping": None} if name == "gemma3_text" else {})
    for against in (None, 7):
        found = attribution(lm, IDS, 6, against=against)
        assert not found.capped
        logits = npllm.forward(IDS, lm)[0][-1].astype(np.float64)
        assert found.logit == logits[6] - (0 if against is None else logits[against])


def test_a_token_whose_logit_the_model_sets_itself_is_refused():
    lm = random_lm("phi3small", vocab_size=100260)
    with pytest.raises(
        UsageError, match=r"token 100258: expected a logit that is the sum of the model's parts, got -3.4"
    ):
        attribution(lm, IDS, 100258)


def test_what_cannot_be_attributed_is_refused_in_one_line():
    lm = random_lm("llama")
    for arguments, message in [
        (([3, 1], 23), "token: expected 0 to 22, got 23"),
        (([3, 1], 6, 2), "position: expected -2 to 1, got 2"),
        (([], 6), "the prompt is empty: expected at least one token"),
    ]:
        with pytest.raises(UsageError) as error:
            attribution(lm, *arguments)
        assert str(error.value) == message
    with pytest.raises(UsageError, match=r"against: expected 0 to 22, got -1"):
        attribution(lm, IDS, 6, against=-1)
    with pytest.raises(UsageError, match=r"against: expected another token than 6, got the same"):
        attribution(lm, IDS, 6, against=6)
    with pytest.raises(UsageError, match=r"lm: expected a model that predicts the next token, got bert"):
        attribution(random_lm("bert"), IDS, 6)


def test_parts_are_ranked_by_size():
    found = attribution(random_lm("phimoe"), IDS, 6)
    ranked = ranked_parts(found)
    sizes = [abs(value) for _, value in ranked]
    assert sizes == sorted(sizes, reverse=True)
    assert {"head 3.1", "feedforward 2", "attention bias 0", "embedding", "norm_bias", "lm_head_bias"} <= dict(
        ranked
    ).keys()
    assert dict(ranked)["head 3.1"] == found.heads[3, 1]
    assert ranked_parts(found, 3) == ranked[:3]
    assert not any(
        name.startswith("attention bias") for name, _ in ranked_parts(attribution(random_lm("gemma2"), IDS, 6))
    )


@needs_default_model
def test_the_parts_of_the_default_models_answer_sum_to_it():
    lm = default_lm()
    ids = lm.tokenizer.encode("The capital of France is")
    paris, rome = (lm.tokenizer.encode(name)[0] for name in (" Paris", " Rome"))
    found = attribution(lm, ids, paris, against=rome)
    check_sum(found)
    assert ranked_parts(found, 1)[0][0] == "head 23.4"
