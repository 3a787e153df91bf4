"""The log-probabilities of generated tokens, for `npllm generate --logprobs`: a table, or records for JSON.

A record has the fields of OpenAI's and llama.cpp's servers: token, bytes, logprob, top_logprobs.
"""

import math
from collections.abc import Sequence
from typing import Any

from ..inspect.tokens import padded, token_bytes, visible
from ..loop import Step
from ..text.stderr import note
from ..tokenizer import Tokenizer

WIDTH = 14  # columns of a token in the table


def records(tokenizer: Tokenizer, made: Sequence[Step]) -> list[dict[str, Any]]:
    """A record for each step."""
    bytes_of = bytes_by_id(tokenizer, made)

    def record(token: int, logprob: float) -> dict[str, Any]:
        data = bytes_of[token]
        return {"id": token, "token": data.decode(errors="replace"), "bytes": [*data], "logprob": logprob}

    return [
        record(step.id, step.logprob) | {"top_logprobs": [record(*one) for one in step.top_logprobs]} for step in made
    ]


def write_table(tokenizer: Tokenizer, made: Sequence[Step]) -> None:
    """Write a line for each step to stderr: its token's log-probability and probability, and the likeliest tokens."""
    bytes_of = bytes_by_id(tokenizer, made)
    likeliest = "likeliest" if any(step.top_logprobs for step in made) else ""
    note(f"{'logprob':>8} {'share':>7}  {'token':{WIDTH}}  {likeliest}".rstrip())
    for step in made:
        others = [f"{padded(quoted(bytes_of[token]), WIDTH)} {logprob:6.2f}" for token, logprob in step.top_logprobs]
        token = padded(quoted(bytes_of[step.id]), WIDTH)
        note("  ".join([f"{step.logprob:8.3f} {math.exp(step.logprob):7.1%}", token, *others]).rstrip())


def quoted(data: bytes) -> str:
    """A token in quotes, which show its spaces."""
    return f'"{visible(data)}"'


def bytes_by_id(tokenizer: Tokenizer, made: Sequence[Step]) -> dict[int, bytes]:
    """The bytes of all tokens that the steps name; none for padding of the vocabulary."""
    ids = sorted({token for step in made for token in (step.id, *(other for other, _ in step.top_logprobs))})
    return {token: data or b"" for token, data in zip(ids, token_bytes(tokenizer, ids), strict=True)}
