"""Text that UTF-8 cannot encode is refused."""

import pytest

from npllm.errors import UsageError
from npllm.text.utf8 import checked_text


def test_text_comes_back_unchanged_and_an_unpaired_surrogate_is_refused():
    assert checked_text("é 🙂") == "é 🙂"
    with pytest.raises(UsageError, match=r"text: expected UTF-8, got '\\udcff' at character 1"):
        checked_text("a\udcff")
