"""The errors of the tokenizers library: one line, and nobody else's errors."""

import pytest

from npllm.errors import ModelFileError, UsageError
from npllm.text.library_errors import library_errors


class PanicException(BaseException):
    """A panic in Rust, as pyo3 raises it."""


def library_fails(error):
    with library_errors("x/tokenizer.json"):
        raise error


@pytest.mark.parametrize("error", [Exception("no [UNK]\nin it"), PanicException("no [UNK]\nin it")])
def test_an_exception_or_a_panic_of_the_library_is_one_line(error):
    with pytest.raises(ModelFileError, match=r"^x/tokenizer\.json: expected one that works, got: no \[UNK\] in it; "):
        library_fails(error)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError, UsageError, SystemExit])
def test_other_errors_stay_as_they_are(error):
    with pytest.raises(error):
        library_fails(error("x"))
