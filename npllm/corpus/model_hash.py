"""A fingerprint of a model, used to check that a resumed run and every worker use the same model."""

import hashlib
import json

import numpy as np
from array_api_compat import device

from ..arrays import array_namespace
from ..devices.device import to_host
from ..families.work import arrays_in
from ..lm import LM

ROWS = 8  # of each weight


def model_hash(lm: LM) -> str:
    """The SHA-256 of a model's config, generation config, tokenizer, chat template, and some rows of every weight as
    stored.

    Eight rows of each weight, evenly spaced, are enough to distinguish differently trained models and other dtypes.
    Models that differ only in other rows, edited by hand, have the same hash.
    """
    keys = [vars(lm.config), dict(lm.generation_config)]
    digest = hashlib.sha256(json.dumps(keys, default=str).encode())
    if lm.tokenizer is not None:
        special = getattr(lm.tokenizer.render, "special_tokens", {})  # variables of the template
        others = [sorted(lm.tokenizer.end_ids), lm.tokenizer.chat_template, dict(special)]
        digest.update((lm.tokenizer.backend.to_str() + json.dumps(others)).encode())
    like = lm.weights.norm
    for weight in arrays_in(lm.weights):
        ids = np.linspace(0, weight.shape[0] - 1, min(ROWS, weight.shape[0])).astype(np.int64)
        ids = array_namespace(like).asarray(ids, device=device(like))
        rows = weight.rows(ids) if hasattr(weight, "rows") else weight[ids, ...]
        digest.update(str((weight.dtype, weight.shape)).encode())
        digest.update(np.ascontiguousarray(to_host(rows), dtype=np.float32).tobytes())
    return digest.hexdigest()
