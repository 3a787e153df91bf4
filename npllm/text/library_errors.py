"""The errors of the `tokenizers` library as npllm's."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import ModelFileError


@contextmanager
def library_errors(where: str = "the model's tokenizer") -> Iterator[None]:
    """Turn an error of the `tokenizers` library into a ModelFileError.

    The library raises plain Exceptions. A panic of its Rust code is a PanicException, which derives from BaseException
    and can be recognized only by its name.

    where : what is named in the message
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())
        raise ModelFileError(
            f"{where}: expected one that works, got: {reason:.200}; download the file again"
        ) from error
