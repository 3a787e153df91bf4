"""A whole text through the model in one pass, for the heads that answer once they have read it: labels, gaps.

Source: "The Components of the Forward Pass": "sequence classification heads and token classification heads".
"""

from collections.abc import Sequence

from array_api_compat import device

from ..arrays import Array, Float, Int, array_namespace
from ..devices.device import free_bytes
from ..devices.memory import check_memory
from ..errors import ModelFileError, UsageError
from ..lm import LM, transform
from ..loop import as_ids
from ..options import check_prompt
from ..text.arguments import check_model, checked
from ..text.library_errors import library_errors
from ..text.token_ids import with_rows
from ..text.utf8 import checked_text


def encode(lm: LM, prompt: str | Sequence[int], pair: str | None = None) -> tuple[list[int], list[int]]:
    """The ids of a text, or of a pair of texts, and the token type of each: 1 in BERT's second text, else 0.

    The tokenizer's own template says which tokens join a pair, and which types it has.
    """
    check_model(lm)
    checked("pair", pair, str | None, lambda _: True, "a text or None")
    if not isinstance(prompt, str) or lm.tokenizer is None:
        if pair is not None:
            raise UsageError("pair: expected None with token ids; they are the whole text")
        ids = as_ids(lm, prompt)
        return ids, [0] * len(ids)
    with library_errors():
        second = None if pair is None else checked_text(pair)
        found = lm.tokenizer.backend.encode(checked_text(prompt), second)
        return with_rows(found.ids, lm.tokenizer.rows, lm.tokenizer.backend), found.type_ids


def hidden_states(
    lm: LM, ids: Sequence[int], token_types: Sequence[int]
) -> tuple[Int[Array, " T"], Float[Array, "T D"]]:
    """The ids on the model's device, and their hidden states. Only BERT has token types."""
    ids = check_prompt(ids, lm.config, new=0, what="text")
    like = lm.weights.norm
    check_memory({"attention scores": 3 * 4 * lm.config.num_attention_heads * len(ids) ** 2}, free_bytes(like))
    xp = array_namespace(like)

    def on_device(numbers: Sequence[int]) -> Int[Array, " T"]:
        return xp.asarray(list(numbers), dtype=xp.int64, device=device(like))

    if not lm.config.bidirectional:
        return on_device(ids), transform(on_device(ids), lm)[0]
    types = lm.weights.embed_token_types.shape[0]
    if max(token_types) >= types:
        raise ModelFileError(
            f"tokenizer.json: expected token types below {types}, as in config.json, got {max(token_types)}"
        )
    return on_device(ids), transform(on_device(ids), lm, token_types=on_device(token_types))[0]
