"""What generation_config.json asks for besides the sampling parameters: tokens that are ruled out, and lengths.

`npllm.pipeline` follows it, as transformers' pipeline does. (`npllm.generate` and the commands take nothing but the end
tokens from this file: their own options and defaults are documented, and complete.)

Source: transformers' classes GenerationConfig and LogitsProcessor, whose order and bounds these rules follow.
"""

import math
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import numpy as np
from array_api_compat import device

from ..arrays import Array, array_namespace
from ..errors import ModelFileError, UsageError
from ..lm import LM
from ..text.end_ids import end_ids

WHERE = "generation_config.json"
# Settings that are not computed, and the values with which they have no effect; nor does None, in any of them.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "diversity_penalty": (0,),
    "length_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "exponential_decay_length_penalty": (),
    "sequence_bias": (),
    "guidance_scale": (1,),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "constraints": (),
    "force_words_ids": (),
    "watermarking_config": (),
    "token_healing": (False,),
    "max_time": (),
}
SAMPLED_ONLY: dict[str, tuple[Any, ...]] = {"typical_p": (1,), "epsilon_cutoff": (0,), "eta_cutoff": (0,), "top_h": ()}


def ignored(lm: LM, do_sample: bool) -> list[str]:
    """The settings that would change the text in transformers and are not computed here."""
    names = NEUTRAL | (SAMPLED_ONLY if do_sample else {})
    found = {name: lm.generation_config.get(name) for name in names}
    unused = [name for name, value in found.items() if value is not None and value not in names[name]]
    return unused + ["bad_words_ids"] * any(len(word) != 1 for word in bad_words(lm))


def bad_words(lm: LM) -> list[list[int]]:
    """The sequences of tokens that must not be generated. Raises ModelFileError if they are not lists of ids."""
    words = lm.generation_config.get("bad_words_ids") or []
    if not isinstance(words, list) or not all(isinstance(word, list) and word for word in words):
        raise ModelFileError(f"{WHERE}: bad_words_ids: expected a list of lists of token ids, got {words!r:.80}")
    return [list(ids({"bad_words_ids": word}, "bad_words_ids")) for word in words]


def length(lm: LM, name: str) -> int | None:
    """A length in tokens, such as "max_length". Raises ModelFileError if it is not one."""
    value = lm.generation_config.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise ModelFileError(f"{WHERE}: {name}: expected a number of tokens, got {value!r:.80}")
    return value


def new_tokens(lm: LM, prompt: int, default: int) -> int:
    """The maximum number of new tokens: from "max_length", which includes the prompt, or the default.

    Raises
    ------
    UsageError : the prompt alone is that long
    """
    total = length(lm, "max_length")
    if total is not None and total <= prompt:
        raise UsageError(
            f"prompt: expected fewer tokens than max_length ({total}) in {WHERE}, got {prompt}; give max_new_tokens"
        )
    return default if total is None else total - prompt


def ruled(lm: LM, rule: Callable[[Array], Array] | None) -> LM:
    """The model with a rule for its logits. None: the same model."""
    return lm if rule is None else lm._replace(lm_head=lambda *arguments: rule(lm.lm_head(*arguments)))


def rule_for(lm: LM, prompt: int, new: int) -> Callable[[Array], Array] | None:
    """What the settings rule out in one generation of up to `new` tokens, as a function from logits to logits.

    It is called once for each token. None: nothing is ruled out.

    Tokens that are ruled out have a logit of -inf, always ("suppress_tokens", "bad_words_ids" of one token), for the
    first new token ("begin_suppress_tokens"), or up to a length ("min_new_tokens", "min_length": the end tokens). A
    forced token rules out all others: the first after a prompt of one ("forced_bos_token_id"), and the last.
    """
    found, made = lm.generation_config, count()
    tokenizer_ids = () if lm.tokenizer is None else lm.tokenizer.end_ids
    ends = end_ids(lm.config.eos_token_id, found, tokenizer_ids)
    always = {word[0] for word in bad_words(lm) if len(word) == 1} - ends | {*ids(found, "suppress_tokens")}
    begin, last = ids(found, "begin_suppress_tokens"), ids(found, "forced_eos_token_id")
    first = ids(found, "forced_bos_token_id") if prompt == 1 else ()
    least = length(lm, "min_new_tokens")
    least = (length(lm, "min_length") or 0) - prompt if least is None else least
    if not (always or begin or last or first or least > 0):
        return None

    def rule(logits: Array) -> Array:
        step = next(made)
        forced = first if step == 0 and first else last if step == new - 1 else ()
        out = {*always, *(begin if step == 0 else ()), *(ends if step < least else ())}
        tokens = np.arange(logits.shape[-1])
        ruled_out = ~np.isin(tokens, forced) if forced else np.isin(tokens, [*out])
        if np.all(ruled_out):
            raise ModelFileError(f"{WHERE}: expected a token that may come next, got all of them ruled out")
        xp = array_namespace(logits)
        return xp.where(xp.asarray(ruled_out, device=device(logits)), -math.inf, 0.0 * logits if forced else logits)

    return rule


def ids(found: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """The ids under a name, in the file one id or a list. Raises ModelFileError for anything else.

    Ids beyond the vocabulary have no effect.
    """
    value = found.get(name)
    listed = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in listed):
        raise ModelFileError(f"{WHERE}: {name}: expected a token id or a list of them, got {value!r:.80}")
    return listed
