"""The targets of fuzz/ in a quick form: seeds, some mutations, and what was once a finding; and the harness itself."""

from pathlib import Path
from random import Random

import pytest
from fuzz.outcome import outcome
from fuzz.run import CORPUS, Worker, minimised, signature
from fuzz.targets import TARGETS, seeds, target
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")
# Those whose inputs may hang a process or end it run in one of their own.
APART = ("tokenizer", "template")
INPUTS = [(path.parent.name, path.name) for path in sorted(CORPUS.glob("*/*"))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each target, kept between its runs."""
    return {name: tmp_path_factory.mktemp(name) for name in TARGETS}


@pytest.mark.parametrize("name", TARGETS)
def test_the_first_seed_is_accepted(name, folders):
    assert outcome(name, seeds(name)[0], folders[name]) == ("", "")


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in APART])
def test_what_a_mutation_gives_is_accepted_or_refused_in_one_line(name, folders):
    """hypothesis makes the choices of the mutations, and so shrinks what fails."""
    some = seeds(name)

    @settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example])
    @given(st.randoms(use_true_random=False), st.sampled_from(some))
    def holds(random, seed):
        data = target(name).mutate(random, seed, some)
        assert outcome(name, data, folders[name])[0] == ""

    holds()


@pytest.mark.parametrize(("name", "file"), [one for one in INPUTS if one[0] not in APART])
def test_a_former_finding_is_none(name, file, folders):
    assert outcome(name, (CORPUS / name / file).read_bytes(), folders[name])[0] == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", APART)
def test_a_former_finding_is_none_in_a_process_of_its_own(name):
    with Worker(name) as worker:
        outcomes = {file: worker.run((CORPUS / name / file).read_bytes()) for of, file in INPUTS if of == name}
    assert outcomes
    assert {file: found for file, found in outcomes.items() if found[0]} == {}


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ("", ""),
        ("refused", ""),
        ("class", "class"),
        ("crash", "crash"),
        ("memory", "memory"),
    ],
)
def test_the_harness_finds_each_kind(data, kind, tmp_path, monkeypatch):
    monkeypatch.setattr("fuzz.outcome.MEMORY", 40_000_000)  # "memory" takes 64 MiB
    assert outcome("itself", data.encode(), tmp_path)[0] == kind


@pytest.mark.parametrize("name", TARGETS)
def test_a_file_is_mixed_with_any_other(name):
    first = seeds(name)[0]
    for number in range(50):
        assert isinstance(target(name).mutate(Random(number), first, [b"17", b"[]", b"\xff"]), bytes)


@pytest.mark.slow
def test_a_worker_survives_what_ends_it(monkeypatch):
    with Worker("itself") as worker:
        assert worker.run(b"death")[0] == "death"
        assert worker.run(b"refused") == ("", "refused")
        monkeypatch.setattr("fuzz.run.LONGEST_RUN", 0.2)
        assert worker.run(b"hang")[0] == "hang"


def test_a_finding_is_made_smaller():
    fails = lambda data: b"bad" in data  # noqa: E731
    assert minimised(b"x" * 40 + b"bad" + b"y" * 40, fails, 5) == b"bad"
    assert minimised(b'{"a": 1, "b": ["bad", 2], "c": {}}', fails, 5) == b"bad"


def test_findings_of_one_cause_have_one_signature():
    one, other = ("crash", "KeyError: 'x' in a.py:f > b.py:g"), ("crash", "KeyError: 'x' in a.py:f > c.py:h")
    assert signature(*one) == signature(*one)
    assert signature(*one) != signature(*other)
    assert signature("", "x: expected 3, got 'abc'") == signature("", "x: expected 77, got 'defg'")
