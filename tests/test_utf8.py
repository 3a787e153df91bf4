"""Text that UTF-8 cannot encode is refused."""

import pytest

from npllm.errors import UsageError
from npllm.text.utf8 import checked_text


def test_text_comes_back_unchanged_and_an_unpaired_surrogate_is_refused():
    assert checked_text("é 🙂") == "é 🙂"
    with pytest.raises(UsageError, match=r"text: expected UTF-8, got '\\udcff' at character 1"):
        checked_text("a\udcff")


def test_what_is_no_text_or_too_long_is_refused():
    with pytest.raises(UsageError, match="text: expected a string, got NoneType"):
        checked_text(None)
    assert len(checked_text(" " * 10_000_000)) == 10_000_000
    with pytest.raises(UsageError, match="text: expected at most 10000000 characters, got 10000001; use parts of it"):
        checked_text(" " * 10_000_001)
