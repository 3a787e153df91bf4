"""The page of the public names, made from their signatures and docstrings."""

import inspect
import sys
from pathlib import Path

import pytest

import npllm

sys.path.append(str(Path(__file__).parent.parent / "docs" / "extensions"))
import api_reference

PAGE = api_reference.reference()


def test_every_public_name_has_an_entry_with_its_parameters():
    for name in npllm.__all__:
        if name == "__version__":
            continue
        value = getattr(npllm, name)
        assert f"## `npllm.{name}`" in PAGE
        entry = PAGE.partition(f"## `npllm.{name}`\n")[2].partition("\n## `")[0]
        assert inspect.getdoc(value).partition("\n")[0].split("`")[0] in entry.replace("\\", "")
        for parameter in inspect.signature(value).parameters if inspect.isfunction(value) else ():
            assert f"{parameter}: " in entry


@pytest.mark.parametrize("name", api_reference.MORE)
def test_a_name_that_others_refer_to_has_one(name):
    assert f"\n## `{name}`\n" in PAGE


def test_sections_become_lists_and_examples_code():
    entry = PAGE.partition("## `npllm.generate`\n")[2].partition("\n## `")[0]
    assert "**Parameters**\n\n- `prompt`: a text, or a list of token ids; or a list of either\n- `max_new" in entry
    assert "```pycon\n>>> import npllm\n" in entry
    assert "----" not in entry


def test_markdown_in_a_docstring_is_text_but_for_code():
    assert api_reference.escaped("a_b [x](y) `c_d` <i> 2**3") == r"a\_b \[x\](y) `c_d` \<i\> 2\*\*3"
    assert api_reference.items("a, b : one\n    more\nc : two") == ["- `a, b`: one more\n- `c`: two"]


def test_a_class_shows_its_fields_and_methods():
    entry = PAGE.partition("## `npllm.Step`\n")[2].partition("\n## `")[0]
    assert '    finish_reason: str | None  # "stop"' in entry
    assert "\n### `npllm.apps.chat.Chat.reply`\n" in PAGE
