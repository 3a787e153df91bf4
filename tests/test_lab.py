"""The lab's answers: the numbers are those of npllm's functions, and a click needs no new pass."""

import json

import numpy as np
import pytest
from families import KEYS, random_lm
from served import numbers, tiny_lm

import npllm
from npllm import loop
from npllm.errors import UsageError
from npllm.inspect.attribution import attribution
from npllm.inspect.contents import lens_data
from npllm.inspect.edits import Edit, Patch, edit_tap, other_values, patch_tap
from npllm.inspect.heads import head_scores, induction_scores, without_first_token
from npllm.inspect.look import look
from npllm.inspect.patching import patching_grid
from npllm.lab import memory
from npllm.lab.answers import ANSWERS, THUMB, Lab
from npllm.lab.memory import Caches, Looks, most_tokens
from npllm.lab.runs import Run, read_run
from npllm.lab.worker import Cancelled
from npllm.tap import untapped

PROMPT, OTHER = "Hello, you!", "Hello, him!"
EDITS = [{"part": "head", "layer": 1, "index": 2}, {"part": "feedforward", "layer": 0, "scale": 0.5}]
EDITED = [Edit(1, "head", 2), Edit(0, "feedforward", scale=0.5)]
PATCHES = [{"layer": 1, "position": 8, "part": "residual"}]


@pytest.fixture
def lab():
    return Lab(tiny_lm(), "tiny")


@pytest.fixture
def counted(lab):
    """The number of tokens in each pass of the lab's model from now on."""
    counts, transform = [], lab.lm.transform

    def counting(ids, *arguments, **options):
        counts.append(ids.shape[-1])
        return transform(ids, *arguments, **options)

    lab.lm = lab.lm._replace(transform=counting)
    return counts


def ask(lab, name, tap=untapped, **asked):
    """All items of an answer, as JSON brings them to the page."""
    return json.loads(json.dumps([*ANSWERS[name](lab, asked, tap)]))


def text(prompt=PROMPT, **more):
    return {"prompt": prompt, **more}


def logits_of(lm, prompt, tap=untapped):
    return npllm.forward(lm.tokenizer.encode(prompt), lm, tap=tap)[0]


def equal(packed, expected, dtype="<f4"):
    """Whether an array of an answer has exactly these elements."""
    return np.array_equal(numbers(packed, dtype), np.asarray(expected, dtype).ravel())


def test_a_run_has_the_logits_of_the_pass(lab):
    (answer,) = ask(lab, "run", run=text())
    assert answer["ids"] == lab.lm.tokenizer.encode(PROMPT)
    assert answer["prompt_length"] == len(answer["ids"])
    assert equal(answer["logits"], logits_of(lab.lm, PROMPT)[-1])
    assert answer["base"] is answer["other"] is None
    assert {"attention", "lens", "listings", "vocabulary"} & answer.keys() == set()
    (same,) = ask(lab, "run", run={"ids": answer["ids"], "prompt_length": 3})
    assert same["logits"] == answer["logits"]
    assert same["prompt_length"] == 3


def test_a_run_with_edits_has_both_logits_and_the_second_texts(lab):
    (answer,) = ask(lab, "run", run=text(edits=EDITS, other=text(OTHER)))
    assert equal(answer["logits"], logits_of(lab.lm, PROMPT, edit_tap(lab.lm, EDITED))[-1])
    assert equal(answer["base"], logits_of(lab.lm, PROMPT)[-1])
    assert answer["logits"] != answer["base"]
    assert equal(answer["other"]["logits"], logits_of(lab.lm, OTHER)[-1])
    assert answer["other"]["ids"] == lab.lm.tokenizer.encode(OTHER)


def test_a_run_with_patches_has_the_other_texts_values(lab):
    (answer,) = ask(lab, "run", run=text(edits=EDITS, patches=PATCHES, other=text(OTHER)))
    patches = [Patch(1, 8)]
    values = other_values(lab.lm, lab.lm.tokenizer.encode(OTHER), patches)
    tap = edit_tap(lab.lm, EDITED, patch_tap(lab.lm, patches, values))
    assert equal(answer["logits"], logits_of(lab.lm, PROMPT, tap)[-1])
    without, other = text(edits=EDITS), text(edits=EDITS, patches=PATCHES, other=text("Hello, hat!"))
    last = len(answer["ids"]) - 1
    assert answer["logits"] not in (ask(lab, "logits", run=one, position=last)[0]["logits"] for one in (without, other))


def test_clicks_need_no_new_pass(lab, counted):
    this = text(edits=EDITS)
    ask(lab, "run", run=this)
    ask(lab, "heads", run=this)  # also measures induction, once
    passes = len(counted)
    seen = look(tiny_lm(), lab.lm.tokenizer.encode(PROMPT), tap=edit_tap(lab.lm, EDITED))
    weights = seen.values["layers.2.attention.weights"]
    (answer,) = ask(lab, "attention", run=this, layer=2, head=3)
    assert equal(answer["weights"], weights[3][np.tril_indices(len(seen.ids))])
    (answer,) = ask(lab, "logits", run=this, position=4)
    assert equal(answer["logits"], seen.logits[4])
    assert equal(answer["base"], logits_of(tiny_lm(), PROMPT)[4])
    assert ask(lab, "lens", run=this, positions=[0, 7]) == [{"lens": lens_data(seen, [0, 7])}]
    (answer,) = ask(lab, "heads", run=this)
    scores = head_scores(tiny_lm(), seen, induction_scores(tiny_lm(), tap=edit_tap(tiny_lm(), EDITED)))
    for kind, values in answer["scores"].items():
        assert equal(values, getattr(scores, kind))
    assert not equal(answer["scores"]["induction"], induction_scores(tiny_lm()))
    assert np.shape(answer["labels"]) == (3, 4)
    ask(lab, "run", run=text())
    assert len(counted) == passes


@pytest.mark.parametrize("tokens", [5, THUMB, THUMB + 1, 100])
def test_thumbs_have_the_largest_weight_of_each_cell(lab, tokens):
    ids = [i % 50 for i in range(tokens)]
    (answer,) = ask(lab, "thumbs", run={"ids": ids})
    size = answer["size"]
    assert size == min(tokens, THUMB)
    maps = numbers(answer["thumbs"], "u1").reshape(3, 4, size, size)
    weights = look(lab.lm, ids).values["layers.1.attention.weights"][2]
    bounds = [i * tokens // size for i in range(size)] + [tokens]
    for row in range(size):
        for column in range(size):
            cell = weights[bounds[row] : bounds[row + 1], bounds[column] : bounds[column + 1]]
            assert maps[1, 2, row, column] == np.rint(255 * np.sqrt(cell.max()))


def test_thumbs_can_hide_the_first_token(lab):
    (answer,) = ask(lab, "thumbs", run=text(), without_first_token=True)
    weights = look(lab.lm, lab.lm.tokenizer.encode(PROMPT)).values["layers.2.attention.weights"]
    expected = np.rint(255 * np.sqrt(without_first_token(weights)))
    assert np.array_equal(numbers(answer["thumbs"], "u1").reshape(3, *weights.shape)[2], expected)


def test_an_answer_is_generated_as_by_npllm_with_the_probability_of_each_token(lab):
    for how in ({}, {"temperature": 1.0, "top_k": 20, "top_p": 0.9, "seed": 5, "repetition_penalty": 1.2}):
        first, *made = ask(lab, "generate", run=text(), max_new_tokens=12, top=3, **how)
        expected = npllm.generate(lab.lm, PROMPT, max_new_tokens=12, **how)
        assert first == {"prompt_ids": expected.prompt_ids, "seed": how.get("seed")}
        assert [step["id"] for step in made] == expected.ids
        assert "".join(step["text"] for step in made) == expected.text
        assert [step["finish_reason"] for step in made] == [None] * (len(made) - 1) + [expected.finish_reason]
        logits = npllm.forward([*expected.prompt_ids, *expected.ids], lab.lm)[0].astype(np.float64)
        for step, row in zip(made, logits[len(expected.prompt_ids) - 1 :], strict=False):
            logprobs = row - np.log(np.exp(row).sum())
            assert step["logprob"] == pytest.approx(logprobs[step["id"]], abs=1e-5)
            best = np.argsort(-logprobs)[:3]
            assert step["top"] == [[i, pytest.approx(logprobs[i], abs=1e-5)] for i in best]


def test_an_answer_without_a_seed_says_which_it_drew(lab):
    first, *made = ask(lab, "generate", run=text(), max_new_tokens=8, temperature=1.0)
    again = ask(lab, "generate", run=text(), max_new_tokens=8, temperature=1.0, seed=first["seed"])
    assert [step["id"] for step in again[1:]] == [step["id"] for step in made]


@pytest.mark.parametrize("patches", [[], PATCHES], ids=["edited", "patched"])
def test_an_answer_is_generated_with_the_edits_in_force(lab, patches):
    other = {"other": text(OTHER)} if patches else {}
    _, *made = ask(lab, "generate", run=text(edits=EDITS, patches=patches, **other), max_new_tokens=12)
    found = [Patch(1, 8)] if patches else []
    values = other_values(lab.lm, lab.lm.tokenizer.encode(OTHER), found)
    tap = edit_tap(lab.lm, EDITED, patch_tap(lab.lm, found, values))
    expected = npllm.steps(lab.lm, lab.lm.tokenizer.encode(PROMPT), max_new_tokens=12, tap=tap)
    assert [step["id"] for step in made] == [step.id for step in expected]
    assert [step["id"] for step in made] != npllm.generate(lab.lm, PROMPT, max_new_tokens=12).ids


def test_going_on_from_an_alternative_computes_only_what_is_new(lab, counted):
    first, *made = ask(lab, "generate", run=text(), max_new_tokens=6, top=2)
    assert counted == [len(first["prompt_ids"]) - 1, 1, 1, 1, 1, 1, 1]
    alternative = made[3]["top"][1][0]
    ids = [*first["prompt_ids"], *(step["id"] for step in made[:3]), alternative]
    counted.clear()
    _, *more = ask(lab, "generate", run={"ids": ids, "prompt_length": len(first["prompt_ids"])}, max_new_tokens=3)
    assert counted == [1, 1, 1]
    assert [step["id"] for step in more] == npllm.generate(tiny_lm(), ids, max_new_tokens=3).ids
    counted.clear()
    ask(lab, "generate", run={"ids": ids, "edits": EDITS}, max_new_tokens=1)  # keys and values of another run
    assert counted == [len(ids) - 1, 1]


def test_patched_and_unpatched_answers_do_not_share_a_cache(lab):
    runs = [text(edits=EDITS), text(edits=EDITS, patches=PATCHES, other=text(OTHER))]
    alone = [ask(Lab(lab.lm, "another"), "generate", run=run, max_new_tokens=6) for run in runs]
    assert alone[0] != alone[1]
    for which in (0, 1, 1, 0):
        assert ask(lab, "generate", run=runs[which], max_new_tokens=6) == alone[which]


@pytest.mark.parametrize("most", [10, 40, 150])
def test_a_cancelled_answer_leaves_a_cache_that_is_right(lab, most):
    expected = ask(Lab(lab.lm, "another"), "generate", run=text(edits=EDITS), max_new_tokens=5)
    calls = []

    def cancelled(name, value):
        calls.append(name)
        if len(calls) == most:
            raise Cancelled
        return value

    with pytest.raises(Cancelled):
        ask(lab, "generate", cancelled, run=text(edits=EDITS))
    assert ask(lab, "generate", run=text(edits=EDITS), max_new_tokens=5) == expected


def test_an_answer_that_is_cancelled_in_its_second_chunk_leaves_no_values_under_the_old_text(lab, monkeypatch):
    monkeypatch.setattr(loop, "PREFILL_CHUNK", 4)
    expected = ask(Lab(lab.lm, "another"), "generate", run=text(), max_new_tokens=5)
    ask(lab, "generate", run=text(), max_new_tokens=5)
    chunks = []

    def cancelled(name, value):
        chunks.extend([name] if name == "embedding" else [])
        if len(chunks) == 2:
            raise Cancelled
        return value

    other = {"ids": [expected[0]["prompt_ids"][0], *range(40, 52)]}
    with pytest.raises(Cancelled):
        ask(lab, "generate", cancelled, run=other)
    again = ask(lab, "generate", run=text(), max_new_tokens=5)
    assert [step["id"] for step in again[1:]] == [step["id"] for step in expected[1:]]
    assert [step["logprob"] for step in again[1:]] == pytest.approx(
        [step["logprob"] for step in expected[1:]], abs=1e-4
    )


@pytest.mark.parametrize("name", ["run", "heads", "generate", "attribution", "patching"])
def test_each_pass_can_be_cancelled(lab, name):
    def cancelled(tapped, value):
        if tapped.startswith("layers.1"):
            raise Cancelled
        return value

    more = {"token": 3} if name in ("attribution", "patching") else {}
    with pytest.raises(Cancelled):
        ask(lab, name, cancelled, run=text(other=text(OTHER)), **more)


def test_attribution_and_patching_are_those_of_npllm(lab):
    ids, other = (lab.lm.tokenizer.encode(one) for one in (PROMPT, OTHER))
    (answer,) = ask(lab, "attribution", run=text(edits=EDITS), token=7, position=5)
    found = attribution(lab.lm, ids, 7, 5, edits=EDITED)
    assert equal(answer["heads"], found.heads)
    assert equal(answer["feedforward"], found.feedforward)
    assert (answer["position"], answer["logit"], answer["others"]) == (5, found.logit, dict(found.others))
    assert answer["total"] == pytest.approx(answer["logit"], abs=1e-4)
    first, *rows = ask(lab, "patching", run=text(other=text(OTHER)), token=7, against=8, part="attention")
    assert first["layers"] == len(rows) == 3
    assert np.array_equal([row["row"] for row in rows], patching_grid(lab.lm, ids, other, 7, "attention", against=8))


def test_what_does_not_depend_on_a_run_is_sent_once(lab):
    (answer,) = ask(lab, "model")
    assert answer["model"]["name"] == "tiny"
    assert len(answer["vocabulary"]) == lab.lm.config.vocab_size
    assert answer["most_tokens"] == 128
    assert answer["neurons"] == lab.lm.config.intermediate_size
    assert all(source["path"] in answer["listings"] for one in answer["sections"].values() for source in one["sources"])


def test_a_model_that_predicts_no_next_token_has_no_lab():
    lm = tiny_lm()
    with pytest.raises(UsageError, match="expected a model that predicts the next token"):
        Lab(lm._replace(weights=lm.weights._replace(lm_head=None)), "classifier")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in KEYS if name != "bert"])
def test_every_call_answers_for_every_family(name):
    lab, ids, other = Lab(random_lm(name), name), [1, 5, 3, 2, 7, 5, 3], [1, 5, 4, 2, 7, 5, 3]
    edits = [{"part": "head", "layer": 1, "index": 2}, {"part": "feedforward", "layer": 2, "scale": 0.5}]
    plain, edited = {"ids": ids}, {"ids": ids, "edits": edits}
    patched = edited | {"patches": [{"layer": 1, "position": 2}], "other": {"ids": other}}
    ask(lab, "model")
    for this in (plain, edited, patched):
        for call in ("run", "heads", "thumbs"):
            ask(lab, call, run=this)
        ask(lab, "attention", run=this, layer=3, head=3)
        ask(lab, "lens", run=this, positions=[0, 6])
        ask(lab, "logits", run=this, position=2)
        (answer,) = ask(lab, "attribution", run=this, token=3)
        assert answer["total"] == pytest.approx(answer["logit"], abs=1e-4)
    assert len(ask(lab, "patching", run=plain | {"other": {"ids": other}}, token=3)) == 5
    taps = [untapped, edit_tap(lab.lm, [Edit(1, "head", 2), Edit(2, "feedforward", scale=0.5)])]
    for this, tap in zip((plain, edited), taps, strict=True):
        _, *made = ask(lab, "generate", run=this, max_new_tokens=4)
        assert [step["id"] for step in made] == [
            step.id for step in npllm.steps(lab.lm, ids, max_new_tokens=4, tap=tap)
        ]


# What is kept


def test_the_passes_that_are_kept_are_bounded(lab, monkeypatch):
    monkeypatch.setattr(memory, "LOOKS", 100_000)
    most = most_tokens(lab.lm.config)
    assert 2 < most < 128
    size = sum(value.nbytes for value in look(lab.lm, [1] * most).values.values())
    larger = sum(value.nbytes for value in look(lab.lm, [1] * (most + 1)).values.values())
    assert 2 * size <= memory.LOOKS < 2 * larger
    for token in range(4):
        ask(lab, "thumbs", run={"ids": [token] * most})
    assert [run.ids[0] for run in lab.looks.kept] == [2, 3]
    ask(lab, "thumbs", run={"ids": [2] * most})
    ask(lab, "thumbs", run={"ids": [4] * most})
    assert [run.ids[0] for run in lab.looks.kept] == [2, 4]
    for asked in ("run", "thumbs"):
        with pytest.raises(UsageError, match=f"the text is too long: {most + 1} tokens, but the lab takes at most"):
            ask(lab, asked, run={"ids": [1] * (most + 1)})


def test_the_caches_that_are_kept_are_bounded(lab):
    caches = Caches()
    for token in range(memory.CACHES + 2):
        run = Run((token, 1, 2))
        cache = caches.take(lab.lm, run)
        assert cache["length"] == 0
        cache["ids"] = list(run.ids)
        caches.put(run, cache)
    assert len(caches.kept) == memory.CACHES
    assert Looks().kept == {}


def test_the_same_run_is_the_same_key(lab):
    one, _ = read_run(lab.lm, text(edits=EDITS))
    other, length = read_run(lab.lm, {"ids": [*one.ids], "edits": [dict(edit) for edit in EDITS], "patches": None})
    assert (one, hash(one), length) == (other, hash(other), len(one.ids))
