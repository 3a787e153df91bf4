"""npllm models: the families that npllm computes, and the README's table of them."""

import json
import os
from pathlib import Path

import pytest

from npllm.cli.models import described, markdown, table
from npllm.families import ALL, ARCHITECTURES, FAMILIES
from npllm.families.nearest import LLAMA_CPP, NEAREST, compact, nearest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
ROWS = [described(family) for family in ALL]


def test_every_family_says_what_it_is():
    assert [row["what"] for row in ROWS if len(row["what"]) < 20 or row["what"].endswith(".")] == []
    assert len({row["what"] for row in ROWS}) == len(ROWS)
    assert {name for row in ROWS for name in row["model_types"]} == {*FAMILIES}
    assert {row["gguf"] for row in ROWS} - {None} == {*ARCHITECTURES}


def test_the_table_of_the_readme_is_up_to_date():
    expected = "\n".join(markdown(ROWS))
    assert f"\n\n{expected}\n\n" in README, "paste what `npllm models --markdown` prints"


def test_the_table_has_a_line_for_each_family_in_a_pipe(npllm):
    done = npllm("models")
    assert done == (0, "".join(f"{line}\n" for line in table(ROWS, None)), "")
    heading, *lines = done.out.splitlines()
    assert len(lines) == len(ALL)
    at = heading.index("what it is")
    for line, family in zip(lines, ROWS, strict=True):
        assert line.startswith(family["family"])
        assert line[at:].startswith(family["what"])


def test_it_fits_every_terminal():
    for width in range(30, 250):
        lines = table(ROWS, width)
        assert max(len(line) for line in lines) <= width
        assert {*" ".join(lines).replace(",", "").split()} >= {*FAMILIES}
    assert table(ROWS, 249) == table(ROWS, None), "a table where there is room"


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_terminals_width_is_asked_for(npllm, width, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_: os.terminal_size((width, 24)))
    last = ["", "-m default: SmolLM2-135M-Instruct (llama)"]
    assert npllm("models") == (0, "".join(f"{line}\n" for line in [*table(ROWS, width), *last]), "")


def test_it_is_an_object_for_each_family_as_json(npllm):
    done = npllm("models", "--json")
    assert json.loads(done.out) == ROWS
    phi3 = next(row for row in ROWS if row["model_types"] == ["phi3"])
    assert phi3["gguf"] == "phi3"
    assert phi3["checked"][0] == "transformers"


def test_it_says_what_gguf_files_were_compared_with():
    family = FAMILIES["phi3"]
    checked = family._replace(gguf=family.gguf._replace(checked="llama.cpp"))
    assert described(checked)["checked"] == ["transformers", "llama.cpp"]
    assert described(family._replace(gguf=None))["checked"] == ["transformers"]


def test_markdown_is_the_readmes_table(npllm):
    assert npllm("models", "--markdown").out == "\n".join(markdown(ROWS)) + "\n"


# Families that npllm does not compute


def test_no_neighbour_is_named_for_a_family_that_is_computed():
    names = {compact(name) for name in (*FAMILIES, *ARCHITECTURES)}
    assert [name for name in (*NEAREST, *LLAMA_CPP) if compact(name) in names] == []
    assert {*LLAMA_CPP.values()} <= {*NEAREST}


def test_the_nearest_family_is_named_with_the_difference():
    assert nearest("phi", FAMILIES).startswith("the nearest family is phi3, but phi has attention and network in")
    assert nearest("phi2", FAMILIES).startswith("the nearest family is phi3, but phi2 has ")
    assert nearest("gptneox", FAMILIES) == nearest("gpt_neox", FAMILIES).replace("gpt_neox", "gptneox")


@pytest.mark.parametrize("name", ["mamba", "t5", "deepseek_v3", "llama5", "phi-3", "qwen", "", "None", "x" * 5000])
def test_none_is_guessed_where_none_is_near(name):
    assert nearest(name, FAMILIES) == ""


def test_a_neighbour_that_is_not_computed_is_not_named():
    assert nearest("phi", ["llama"]) == ""


@pytest.mark.oracle
def test_the_heads_are_those_of_transformers():
    auto = pytest.importorskip("transformers.models.auto.modeling_auto", reason="transformers is not installed")
    heads = {
        "sequence": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "token": auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    }
    with_pictures = {"gemma3"}  # only the language model is read
    for name, family in FAMILIES.items():
        if "transformers" in family.checked and name not in with_pictures:
            assert [*family.classifiers] == [head for head, names in heads.items() if name in names], name


@pytest.mark.oracle
def test_the_names_of_other_families_are_those_of_transformers():
    auto = pytest.importorskip("transformers.models.auto.configuration_auto", reason="transformers is not installed")
    by_code_alone = {"phi3_v", "internlm2", "minicpm"}  # with Python code in the repository, not in transformers
    assert {*NEAREST} - {*auto.CONFIG_MAPPING_NAMES} == by_code_alone
    assert {family for family, _ in NEAREST.values()} <= {*auto.CONFIG_MAPPING_NAMES}
