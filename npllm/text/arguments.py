"""The arguments of the public calls: checked before anything is computed, and turned into Python's own types.

A number may be Python's or NumPy's, or an array without axes. It comes out as Python's: a NumPy int8 would overflow in
a sum, and a float64 would widen float32 arrays. Booleans and strings are not numbers.
"""

import inspect
import math
import operator
import reprlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np

from ..arrays import Array, array_namespace
from ..cache import CACHE_DTYPES, Cache
from ..config import Config
from ..errors import UsageError
from ..model import transform
from ..tap import Tap, untapped

T = TypeVar("T")
SHORT = reprlib.Repr()
LONGEST = SHORT.maxstring = SHORT.maxother = 80  # characters
WIDEST = 128  # bits of an integer


def shown(value: Any) -> str:
    """A value in an error message: one short line.

    >>> shown("warm"), shown(np.zeros((2, 2))), shown(10**400)
    ("'warm'", 'array([[0., 0.], [0., 0.]])', 'an integer of 1329 bits')
    """
    if isinstance(value, int) and value.bit_length() > WIDEST:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = " ".join(SHORT.repr(value).split())
    except ValueError:  # an integer of thousands of digits in a list
        text = type(value).__name__
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def plain(value: Any) -> Any:
    """A NumPy scalar or an array without axes as a Python value; any other value unchanged."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def checked(name: str, value: Any, kind: Any, fits: Callable[[Any], bool], expected: str) -> Any:
    """The value of an option as Python's own. Raises UsageError if it is of another kind or does not fit.

    kind : Integral, Integral | None, Real, bool, str or list (of strings; a single string and None become lists, too)
    fits : must be false for NaN
    """
    found = plain(value)
    if kind is list:
        found = [] if found is None else [found] if isinstance(found, str) else found
        found = list(found) if isinstance(found, Sequence | set | frozenset) else None
    if isinstance(found, bool) is not (kind is bool) or not isinstance(found, kind):
        expected = "a whole number" if kind in (Integral, Integral | None) else expected
        raise UsageError(f"{name}: expected {expected}, got {shown(value)}")
    if kind is Real or isinstance(found, Integral):
        try:
            found = float(found) if kind is Real else found if kind is bool else int(found)
        except OverflowError:  # an integer beyond float64
            found = math.nan
    if not fits(found):
        raise UsageError(f"{name}: expected {expected}, got {shown(value)}")
    return found


def whole_number(name: str, value: Any, least: int = 1, most: int | None = None, expected: str = "") -> int:
    """The value as an int. Raises UsageError unless it is a whole number from `least` to `most`."""
    bounds = f"{least} or more" if most is None else f"{least} to {most}"
    return checked(name, value, Integral, lambda n: n >= least and (most is None or n <= most), expected or bounds)


def boolean(name: str, value: Any) -> bool:
    """The value as a bool. Raises UsageError for anything but True and False."""
    return checked(name, value, bool, lambda _: True, "True or False")


def token_ids(ids: Any, what: str = "ids", expected: str = "a list of token ids") -> list[int]:
    """Token ids as Python integers. Raises UsageError for anything but a sequence, or an array, of whole numbers."""
    is_list = isinstance(ids, Sequence) and not isinstance(ids, str | bytes | bytearray)
    if not is_list and getattr(ids, "ndim", None) != 1:
        raise UsageError(f"{what}: expected {expected}, got {shown(ids)}")
    found = []
    for position, one in enumerate(ids.tolist() if hasattr(ids, "tolist") else ids):
        try:
            found.append(operator.index(one))
        except TypeError as error:
            raise UsageError(f"{what}: expected a whole number as token {position}, got {shown(one)}") from error
        if isinstance(one, bool):
            raise UsageError(f"{what}: expected a whole number as token {position}, got {one}")
    return found


def check_ids(ids: Any, vocab_size: int) -> list[int]:
    """Token ids as Python integers. Raises UsageError for an id that has no row in the embedding matrix."""
    found = token_ids(ids)
    for position, token in enumerate(found):
        if not 0 <= token < vocab_size:
            raise UsageError(f"token {position}: expected an id from 0 to {vocab_size - 1}, got {shown(token)}")
    return found


def check_lists(ids: Sequence[Any], vocab_size: int) -> list[Any]:
    """Token ids as a list, or for a batch as lists of equal length. Raises UsageError for anything else."""
    if not ids or not isinstance(ids[0], Sequence) or isinstance(ids, str):
        return check_ids(ids, vocab_size)
    rows = [check_ids(row, vocab_size) for row in ids]
    if len({len(row) for row in rows}) > 1:
        raise UsageError(f"ids: expected lists of equal length, got {sorted({len(row) for row in rows})} tokens")
    return rows


def check_model(lm: Any, name: str = "lm") -> None:
    """Raise UsageError for anything but a model."""
    if not isinstance(getattr(lm, "config", None), Config) or not hasattr(lm, "weights"):
        raise UsageError(f"{name}: expected a model, as npllm.load returns it, got {type(lm).__name__}")


def check_writes(lm: Any, name: str = "lm") -> None:
    """Raise UsageError for anything but a model that predicts the next token."""
    check_model(lm, name)
    got = f"{lm.config.family}, which fills gaps: npllm fill" if lm.config.bidirectional else ""
    if lm.weights.lm_head is None:
        got = "a classifier; npllm.apps.classify classifies with it, from Python"
    if got:
        raise UsageError(f"{name}: expected a model that predicts the next token, got {got}")


def check_cache(cache: Any, config: Config, like: Array, batch: tuple[int, ...] = ()) -> int:
    """The capacity of a KV cache. Raises UsageError unless it is one for this model, this device and this batch."""
    expected = "a KV cache of this model, as npllm.cache.empty_cache makes it"
    if not isinstance(cache, MutableMapping) or not {"keys", "values", "length"} <= {*cache}:
        raise UsageError(f"cache: expected {expected}, got {shown(cache)}")
    layers, capacity = config.num_hidden_layers, 0
    for name in ("keys", "values"):
        arrays = cache[name]
        if not isinstance(arrays, list) or len(arrays) != layers:
            got = f"{len(arrays)} of them" if isinstance(arrays, list) else shown(arrays)
            raise UsageError(f"cache: {name}: expected a list of {layers} arrays, one for each layer, got {got}")
        for layer, array in enumerate(arrays):
            if not isinstance(like, type(array)):
                wanted = f"{type(like).__module__}.{type(like).__name__}"
                raise UsageError(f"cache: {name}[{layer}]: expected a {wanted}, as the weights are, got {shown(array)}")
            capacity = array.shape[-2] if (name, layer) == ("keys", 0) and array.ndim > 1 else capacity
            shape = (*batch, config.num_key_value_heads, capacity, config.head_dim)
            if array.shape != shape or str(array.dtype).rpartition(".")[2] not in CACHE_DTYPES:
                raise UsageError(
                    f"cache: {name}[{layer}]: expected {' or '.join(CACHE_DTYPES)} of shape {shape}, got {array.dtype}"
                    f" of shape {tuple(array.shape)}; npllm.cache.empty_cache makes one for this model"
                )
    whole_number("cache: length", cache["length"], 0, capacity)
    return capacity


def held_length(cache: Cache, ids: Sequence[int]) -> int:
    """How many of these ids the cache holds; at most all but the last, which is computed for its logits.

    If the cache has its "ids", only the common prefix counts: the rest belongs to another text.
    """
    known = cache.get("ids", ids)
    same = next((i for i, (a, b) in enumerate(zip(known, ids, strict=False)) if a != b), min(len(known), len(ids)))
    return min(int(cache["length"]), same, len(ids) - 1)


def one_reader(tokens: Iterator[T], cache: Cache, ids: list[int]) -> Iterator[T]:
    """The same tokens. Raises UsageError if another call changes the cache of this generation between two of them."""
    message = "cache: expected one that only this generation uses, got one that another call has changed since"
    if cache.get("ids") is not ids or cache["length"] >= len(ids):
        raise UsageError(message)
    for token in tokens:
        yield token
        if cache.get("ids") is not ids or cache["length"] >= len(ids):
            raise UsageError(message)


def check_pass(ids: Array, lm: Any, cache: Any, options: Mapping[str, Any]) -> None:
    """Raise UsageError unless the arrays fit a pass over these ids; `model.transform` documents them.

    ids, positions and token types in a list or on the CPU must have rows in their embedding matrices. On a GPU they are
    not checked: the host would have to wait.
    """
    config, weights = lm.config, lm.weights
    if not hasattr(ids, "dtype") or not hasattr(ids, "shape") or not ids.shape or 0 in ids.shape:
        raise UsageError(f"ids: expected a list or an array of at least one token id, got {shown(ids)}")
    xp, new = array_namespace(ids), ids.shape[-1]
    if not xp.isdtype(ids.dtype, "integral"):
        raise UsageError(f"ids: expected whole numbers, got an array of {ids.dtype}")
    check_rows("ids", ids, "ids", config.vocab_size)
    past = 0
    if cache is not None:
        capacity, past = check_cache(cache, config, weights.norm, ids.shape[:-1]), int(cache["length"])
        if past + new > capacity:
            raise UsageError(f"cache: expected room for {past + new} tokens, got {capacity}; use npllm.cache.grow")
    check_names(lm, options)
    for name in ("attention", "block", "embed", "norm"):
        if name in options and not callable(options[name]):
            raise UsageError(f"{name}: expected a function, got {shown(options[name])}")
    if options.get("total_length") is not None:
        whole_number("total_length", options["total_length"])
    for name in ("positions", "token_types"):
        numbers, table = listed(options.get(name)), getattr(weights, f"embed_{name}", None)
        check_axes(name, numbers, "integral", (new,))
        if table is not None and numbers is not None:
            check_rows(name, numbers, name.replace("_", " "), table.shape[0])
        elif table is not None and name == "positions" and past + new > table.shape[0]:
            most = f"at most {table.shape[0]} tokens, the rows of the position embeddings"
            raise UsageError(f"ids: expected {most}, got {past + new}")
    visible, layers = options.get("visible"), config.num_hidden_layers
    masks = visible if isinstance(visible, list | tuple) else [visible] * layers
    if len(masks) != layers:
        raise UsageError(f"visible: expected a mask, or {layers} of them, one for each layer, got {len(masks)}")
    for mask in masks:
        check_axes("visible", mask, "bool", (new, past + new))


def check_names(lm: Any, options: Mapping[str, Any]) -> None:
    """Raise UsageError for an option that the model's pass does not have."""
    parameters = [*inspect.signature(lm.transform).parameters.values()]
    if any(one.kind is one.VAR_KEYWORD for one in parameters):  # it hands the others on to the chapter's pass
        parameters += inspect.signature(transform).parameters.values()
    known = {one.name for one in parameters if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)}
    known -= {"ids", "weights", "config", "cache"}
    known |= {"token_types"} if hasattr(lm.weights, "embed_token_types") else set()
    for name in {*options} - known:
        raise UsageError(f"{name}: expected an option of this model's pass ({', '.join(sorted(known))})")


def listed(numbers: Any) -> Any:
    """A list of whole numbers, or of such lists, as an array; any other value unchanged."""
    try:
        return np.asarray(numbers) if isinstance(numbers, list | tuple) else numbers
    except ValueError:  # lists of several lengths
        return numbers


def check_rows(name: str, numbers: Array, what: str, rows: int) -> None:
    """Raise UsageError for a number that has no row in a table. An array on a GPU is not checked."""
    if isinstance(numbers, np.ndarray) and (numbers.min() < 0 or numbers.max() >= rows):
        wrong = int(numbers.min() if numbers.min() < 0 else numbers.max())
        raise UsageError(f"{name}: expected {what} from 0 to {rows - 1}, got {wrong}")


KINDS = {"integral": "whole numbers", "bool": "booleans", "real floating": "floating-point numbers"}


def checked_tap(tap: Any) -> Tap:
    """The tap. Raises UsageError, in the pass, for one that returns anything but an array of the value's shape."""
    checked("tap", tap, Callable, lambda _: True, "a function (name, value) -> value")
    if tap is untapped:
        return tap

    def outside(name: str, value: Array) -> Array:
        new = tap(name, value)
        if getattr(new, "shape", None) != value.shape:
            got = f"one of shape {tuple(new.shape)}" if hasattr(new, "shape") else shown(new)
            raise UsageError(f"tap: {name}: expected the value, or another of shape {tuple(value.shape)}, got {got}")
        return new

    return outside


def check_hidden(hidden: Any, lm: Any) -> None:
    """Raise UsageError unless these are hidden states of this model."""
    check_model(lm)
    if hidden is None:
        raise UsageError("hidden: expected hidden states, as npllm.transform returns them, got None")
    check_axes("hidden", hidden, "real floating", (lm.config.hidden_size,))


def check_axes(name: str, array: Any, kind: str, last: tuple[int, ...]) -> None:
    """Raise UsageError unless an array is None, or of this kind (of `isdtype`) with these as its last axes."""
    if array is None:
        return
    shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
    fits = shape is not None and dtype is not None and tuple(shape[-len(last) :]) == last
    if not fits or not array_namespace(array).isdtype(dtype, kind):
        got = shown(array) if dtype is None else f"{dtype} of shape {tuple(shape or ())}"
        raise UsageError(f"{name}: expected an array of {KINDS[kind]} [..., {', '.join(map(str, last))}], got {got}")
