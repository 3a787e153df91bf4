"""What generation_config.json rules out, in `npllm.pipeline`: computed as in transformers, or named in one warning."""

import json

import pytest
from checkpoints import END, TOKENS, write_folder
from models import tiny_config
from test_loop import random_lm

import npllm
from npllm.apps.calls import generate
from npllm.apps.constraints import NEUTRAL, SAMPLED_ONLY, ignored, new_tokens, rule_for, ruled
from npllm.errors import ModelFileError, UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    write_folder(path)
    return path


@pytest.fixture(scope="module")
def lm(folder):
    return npllm.load(folder)


ALL_BUT_7 = [i for i in range(11) if i != 7]


def with_settings(lm, **settings):
    return lm._replace(generation_config=settings)


def constrained(lm, prompt, new):
    return ruled(lm, rule_for(lm, prompt, new))


def made(lm, prompt, new, **settings):
    return generate(constrained(with_settings(lm, **settings), len(prompt), new), prompt, max_new_tokens=new).ids


def test_tokens_that_are_ruled_out_are_never_made():
    lm, prompt = random_lm(), [3, 1, 4]
    free = generate(lm, prompt, max_new_tokens=6).ids
    for settings in ({"suppress_tokens": [free[0]]}, {"suppress_tokens": free[0]}, {"bad_words_ids": [[free[0]]]}):
        assert free[0] not in made(lm, prompt, 6, **settings)
    for use_cache in (True, False):
        head = constrained(with_settings(lm, suppress_tokens=free), 3, 6)
        assert not {*generate(head, prompt, max_new_tokens=6, use_cache=use_cache).ids} & {*free}


def test_tokens_ruled_out_at_the_beginning_are_so_only_there():
    lm, prompt = random_lm(), [3, 1, 4]
    rest = generate(lm, [*prompt, 7], max_new_tokens=5).ids
    assert {*rest} != {7}
    assert made(lm, prompt, 6, begin_suppress_tokens=ALL_BUT_7) == [7, *rest]


@pytest.mark.parametrize("settings", [{"min_new_tokens": 4}, {"min_length": 7}, {"min_new_tokens": 4, "min_length": 9}])
def test_an_end_token_comes_only_after_the_least_number(settings):
    lm, prompt = random_lm(), [3, 1, 4]
    free = [generate(lm, [*prompt, *[7] * count], max_new_tokens=1).ids[0] for count in range(5)]
    assert 7 not in (free[3], free[4])
    assert made(lm, prompt, 9, eos_token_id=ALL_BUT_7, **settings) == [7, 7, 7, 7, free[4]]


def test_forced_tokens_are_the_first_after_one_token_and_the_last():
    lm = random_lm()
    assert made(lm, [3], 4, forced_bos_token_id=7)[0] == 7
    assert made(lm, [3, 1], 4, forced_bos_token_id=7) == generate(lm, [3, 1], max_new_tokens=4).ids
    assert made(lm, [3, 1], 4, forced_eos_token_id=7)[-1] == 7
    assert made(lm, [3, 1], 1, forced_eos_token_id=7) == [7]


def test_several_forced_tokens_have_the_same_logit():
    lm = random_lm()
    logits = npllm.forward([3, 1], lm)[0][-1]
    first, likelier = next((i, j) for i in range(11) for j in range(i, 11) if logits[j] > logits[i])
    assert made(lm, [3, 1], 1, forced_eos_token_id=[likelier, first]) == [first]


def test_a_length_counts_the_prompt():
    lm = with_settings(random_lm(), max_length=10)
    assert (new_tokens(lm, 3, 256), new_tokens(random_lm(), 3, 256)) == (7, 256)
    with pytest.raises(
        UsageError, match=r"^prompt: expected fewer tokens than max_length \(10\) in generation_config.json, got 10; "
    ):
        new_tokens(lm, 10, 256)


def test_the_pipeline_takes_the_settings(lm):
    plain = npllm.pipeline("text-generation", lm, max_new_tokens=6, return_full_text=False)("Hello")
    free = npllm.generate(lm, "Hello", max_new_tokens=6)
    other = with_settings(lm, suppress_tokens=free.ids)
    assert npllm.pipeline("text-generation", other, max_new_tokens=6, return_full_text=False)("Hello") != plain
    short = with_settings(lm, max_length=len(free.prompt_ids) + 2)
    expected = npllm.generate(lm, "Hello", max_new_tokens=2).text
    assert npllm.pipeline("text-generation", short, return_full_text=False)("Hello") == [{"generated_text": expected}]
    assert npllm.pipeline("text-generation", short, max_new_tokens=6, return_full_text=False)("Hello") == plain
    stopped = with_settings(lm, stop_strings=[free.text[2:4]])
    text = npllm.pipeline("text-generation", stopped, max_new_tokens=6, return_full_text=False)("Hello")
    assert text == [{"generated_text": free.text[: free.text.index(free.text[2:4])]}]


# What is not computed

OTHER = {
    "num_beams": 4, "num_beam_groups": 2, "num_return_sequences": 3, "diversity_penalty": 0.5, "length_penalty": 2.0,
    "no_repeat_ngram_size": 3, "encoder_no_repeat_ngram_size": 3, "encoder_repetition_penalty": 1.2,
    "exponential_decay_length_penalty": [5, 1.1], "sequence_bias": [[[1, 2], 1.5]], "guidance_scale": 1.5,
    "penalty_alpha": 0.6, "dola_layers": "low", "constraints": [1], "force_words_ids": [[1]], "token_healing": True,
    "watermarking_config": {"bias": 2.5}, "max_time": 5.0, "bad_words_ids": [[1, 2]],
}  # fmt: skip
SAMPLED = {"typical_p": 0.9, "epsilon_cutoff": 1e-3, "eta_cutoff": 1e-3, "top_h": 0.5}


@pytest.mark.parametrize("name", [*OTHER, *SAMPLED])
def test_a_setting_without_effect_is_named_in_one_warning(lm, name):
    found = with_settings(lm, **{name: (OTHER | SAMPLED)[name]})
    generator = npllm.pipeline("text-generation", found, max_new_tokens=2, do_sample=name in SAMPLED, seed=1)
    with pytest.warns(UserWarning, match=rf"^generation_config\.json: {name} has no effect in npllm$") as warned:
        generator("Hello")
    assert len(warned) == 1


def test_every_setting_that_is_not_computed_is_tried():
    assert {*OTHER} - {"bad_words_ids"} == {*NEUTRAL}
    assert {*SAMPLED} == {*SAMPLED_ONLY}


def test_several_are_named_together(lm):
    found = with_settings(lm, num_beams=4, no_repeat_ngram_size=2, top_k=5, length_penalty=1.0)
    assert ignored(found, do_sample=False) == ["num_beams", "no_repeat_ngram_size"]


def test_neutral_values_and_other_keys_are_no_warning(lm):
    neutral = {name: values[0] for name, values in (NEUTRAL | SAMPLED_ONLY).items() if values}
    neutral |= {name: None for name, values in (NEUTRAL | SAMPLED_ONLY).items() if not values}
    more = {"transformers_version": "5.0", "pad_token_id": 3, "bos_token_id": 1, "do_sample": False, "use_cache": True}
    more |= {"renormalize_logits": True, "remove_invalid_values": True, "output_scores": True, "early_stopping": True}
    more |= {
        "suppress_tokens": None,
        "bad_words_ids": None,
        "max_length": None,
        "stop_strings": None,
        "chat_format": "x",
    }
    found = with_settings(lm, **neutral, **more)
    for do_sample in (False, True):
        assert ignored(found, do_sample) == []
    assert npllm.pipeline("text-generation", found, max_new_tokens=2)("Hello")
    assert constrained(found, 5, 2) is found, "nothing is ruled out: the model is as it was"
    assert ignored(with_settings(lm, typical_p=0.5), do_sample=False) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("suppress_tokens", "a"), ("suppress_tokens", [1.5]), ("suppress_tokens", [True]), ("begin_suppress_tokens", {}),
     ("forced_eos_token_id", "7"), ("bad_words_ids", [1]), ("bad_words_ids", [[]]), ("bad_words_ids", "a"),
     ("bad_words_ids", [["a"]]), ("min_length", -1), ("min_new_tokens", 1.5), ("max_length", "20"),
     ("max_length", True), ("temperature", True), ("max_new_tokens", "5")],
)  # fmt: skip
def test_a_setting_that_makes_no_sense_is_the_files_fault(lm, name, value):
    generator = npllm.pipeline("text-generation", with_settings(lm, **{name: value}))
    with pytest.raises(ModelFileError, match=rf"^generation_config\.json: {name}: expected ") as error:
        generator("Hello")
    assert "\n" not in str(error.value)


def test_ids_without_a_row_rule_out_nothing():
    lm = random_lm()
    assert made(lm, [3], 4, suppress_tokens=[-1, 10**6]) == generate(lm, [3], max_new_tokens=4).ids


def test_all_tokens_ruled_out_is_the_files_fault():
    with pytest.raises(ModelFileError, match=r"^generation_config\.json: .*all of them ruled out"):
        made(random_lm(), [3], 4, suppress_tokens=[*range(tiny_config().vocab_size)])


# Compared with transformers

LETTERS = [TOKENS.index(letter) for letter in "etaoinshrdlu"]
CASES = [
    {"suppress_tokens": LETTERS},
    {"suppress_tokens": [*range(200)]},
    {"begin_suppress_tokens": [*range(250)]},
    {"bad_words_ids": [[i] for i in range(150)]},
    {"bad_words_ids": [[i] for i in range(280)] + [[END]], "eos_token_id": END},
    {"max_length": 12},
    {"max_length": 12, "max_new_tokens": 3},
    {"forced_eos_token_id": 7, "max_length": 11},
    {"forced_eos_token_id": [9, 7], "max_new_tokens": 6},
    {"forced_bos_token_id": 7, "max_new_tokens": 6},
    {"suppress_tokens": [*range(100)], "begin_suppress_tokens": [*range(250)], "repetition_penalty": 1.4},
    {"bad_words_ids": [[i] for i in range(90)], "forced_eos_token_id": 7, "max_new_tokens": 5, "min_new_tokens": 3},
]


LEAST = [{"min_new_tokens": 8}, {"min_length": 13}, {"min_length": 30, "min_new_tokens": 2}]


def both(folder, tmp_path, settings):
    """A model with these settings, in npllm, and in transformers with its tokenizer and module."""
    pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[oracle]'")
    reason = "transformers is not installed: pip install -e '.[oracle]'"
    transformers = pytest.importorskip("transformers", reason=reason)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = {"eos_token_id": END, "pad_token_id": 0} | settings
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    return npllm.load(tmp_path), model, tokenizer, transformers


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")  # transformers issues warnings of its own
@pytest.mark.parametrize("settings", CASES, ids=range(len(CASES)))
def test_the_text_is_that_of_transformers(folder, tmp_path, settings):
    lm, model, tokenizer, transformers = both(folder, tmp_path, settings)
    theirs = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    ours = npllm.pipeline("text-generation", lm)
    more = {} if {"max_length", "max_new_tokens"} & {*settings} else {"max_new_tokens": 10}
    for prompt in ("H", "Hello", "and the 12"):
        assert ours(prompt, **more) == theirs(prompt, do_sample=False, **more)


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", LEAST, ids=range(len(LEAST)))
def test_the_ids_are_those_of_transformers_where_ends_are_ruled_out(folder, tmp_path, settings):
    lm, model, tokenizer, _ = both(folder, tmp_path, {"eos_token_id": [*range(150), END]} | settings)
    lm = lm._replace(tokenizer=None)
    for prompt in ("H", "Hello", "and the 12"):
        inputs = tokenizer(prompt, return_tensors="pt")
        ids = inputs["input_ids"][0].tolist()
        expected = model.generate(**inputs, do_sample=False, max_new_tokens=12)[0].tolist()
        assert [*ids, *generate(constrained(lm, len(ids), 12), ids, max_new_tokens=12).ids] == expected
