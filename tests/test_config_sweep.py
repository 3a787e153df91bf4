"""Every config.json key that changes the output is either implemented or refused: none is silently ignored.

Each key of transformers' config classes, including those their base reads without listing them, is changed
individually. npllm must then match transformers' logits, or raise a ModelFileError that names the key.
"""

import pytest
import sweep
from tolerance import assert_close

from npllm.errors import ModelFileError
from npllm.families import FAMILIES, HARMLESS
from npllm.families.keys import Keys

COMPARED = [name for name, family in FAMILIES.items() if "transformers" in family.checked]
CASES = [
    (family, sweep.language(family), key, value)
    for family in COMPARED
    for key in sweep.keys_of(family)
    for value in sweep.values_of(family, key)
] + [
    (family, head, key, value)
    for family, heads in sweep.CLASSIFIERS.items()
    if family in COMPARED
    for head in heads
    for key in sweep.OF_CLASSIFIERS
    for value in sweep.values_of(family, key, head)
]


def name_of(case):
    family, head, key, value = case
    return f"{family}-{head}-{key}={str(value)[:60]}"


@pytest.fixture(scope="module")
def transformers():
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[oracle]'")
    module = pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[oracle]'")
    module.utils.logging.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with models this small, threads only wait for each other
    yield module
    torch.set_num_threads(threads)


def outcome(folder, family, head, keys, key):
    """ "equal" or "refused": what npllm does with a checkpoint that transformers can run."""
    expected = sweep.expected_logits(folder, head=head)
    refusal = None
    try:
        got = sweep.npllm_logits(folder, head=head)
    except ModelFileError as error:
        refusal = str(error)
    if refusal is not None:
        assert key in refusal, f"expected a refusal that names {key}, got: {refusal}"
        return "refused"
    assert_close(f"{family}, {key} = {keys.get(key, sweep.ABSENT)!r}: logits", got, expected)
    return "equal"


def transformers_answer(folder, family, keys, head):
    sweep.write_model(folder, family, keys, head)
    return sweep.expected_logits(folder, head=head)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=name_of)
@pytest.mark.filterwarnings("default")
@pytest.mark.oracle
def test_a_changed_key_is_computed_or_refused(transformers, tmp_path, case, record_property):
    family, head, key, value = case
    keys = sweep.changed(sweep.base(family, head), **{key: value})
    folder = tmp_path / "model"
    if sweep.transformers_fails(family, key, value):
        with pytest.raises(Exception):  # noqa: B017, PT011 (any error; the list must not go stale)
            transformers_answer(folder, family, keys, head)
        pytest.skip("transformers itself fails")
    sweep.write_model(folder, family, keys, head)
    result = outcome(folder, family, head, keys, key)
    record_property("outcome", result)
    print(f"{family} {head}: {key} = {value!r}: {result}")


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("family", COMPARED)
def test_the_checkpoint_that_the_sweep_starts_from_is_computed(transformers, tmp_path, family):
    """If the base were refused, every variant would be too, and the sweep would prove nothing."""
    kinds = {"sequence": sweep.SEQUENCE, "token": sweep.TOKEN}
    for head in (sweep.language(family), *(kinds[kind] for kind in FAMILIES[family].classifiers)):
        keys = sweep.base(family, head)
        sweep.write_model(tmp_path / head, family, keys, head)
        assert outcome(tmp_path / head, family, head, keys, "config.json") == "equal"


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
def test_the_record_is_of_the_transformers_that_is_installed(transformers):
    assert sweep.recorded() == sweep.fields(), "run python tests/sweep.py, and give the new keys values in sweep.VALUES"


def test_every_key_has_values_to_try():
    for family in COMPARED:
        missing = {*sweep.keys_of(family)} - {*sweep.VALUES}
        assert not missing, f"{family}: sweep.VALUES has no values for {sorted(missing)}"


# The same without transformers: whether a family considers a key at all


def keys_read(family):
    """The config.json keys that a family reads or refuses."""
    keys = Keys(
        {"model_type": family, "architectures": [sweep.ARCHITECTURES[family]]} | sweep.base(family, sweep.CAUSAL)
    )
    FAMILIES[family].read_config(keys)
    return keys.read


@pytest.mark.parametrize("family", COMPARED)
def test_every_key_of_transformers_is_read_or_listed_as_harmless(family):
    """Fails for a key whose effect has not been considered."""
    forgotten = {*sweep.keys_of(family)} - keys_read(family) - HARMLESS - {*FAMILIES[family].harmless}
    assert not forgotten, f"{family}: neither read, refused nor harmless: {sorted(forgotten)}"


@pytest.mark.parametrize("family", COMPARED)
def test_what_is_listed_as_harmless_is_not_read(family):
    both = (HARMLESS | {*FAMILIES[family].harmless}) & keys_read(family)
    assert not both, f"{family}: listed as harmless, and read: {sorted(both)}"
