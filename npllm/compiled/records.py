"""A model's weights as records for the loops: where each array lies, its shape, and the form it is stored in.

A compiled function needs the types of all its arguments. With a tuple of arrays for each block it would be compiled for
every number of layers and every mixture of dtypes; a record of addresses is one type for all models. The maker of a
record must keep the arrays alive.
"""

from typing import Any

import ml_dtypes
import numpy as np

from ..arrays import Weight
from ..storage.columns import Columns
from ..storage.groups import ROWS
from ..storage.packed import Groups, Half

FLOAT32, BFLOAT16, FLOAT16, COLUMNS, BYTES, NIBBLES = range(6)  # the forms

WEIGHT = np.dtype(
    [
        ("form", "i8"),
        ("height", "i8"),  # F
        ("width", "i8"),  # D
        ("codes", "u8"),  # the address of the numbers, or of their codes
        ("bias", "u8"),  # an address; 0: none
        # Groups only:
        ("scale", "u8"),
        ("minimum", "u8"),  # an address; 0: none
        ("narrow", "i8"),  # whether scales and minima are bfloat16
        ("group", "i8"),  # the elements of a group
        ("offset", "f4"),
        ("values", "u8"),  # of 16 codes, float32; an address; 0: they stand for themselves
    ],
    align=True,
)
HALVES = {np.dtype(ml_dtypes.bfloat16): BFLOAT16, np.dtype(np.float16): FLOAT16}


class Unsupported(ValueError):
    """There is no loop for this weight; the message says why."""


def address(array: np.ndarray | None) -> int:
    """The address of a contiguous array; 0 for None."""
    if array is None:
        return 0
    if not array.flags.c_contiguous:
        raise Unsupported("the loops need contiguous arrays")
    return int(array.ctypes.data)


def vector(array: Any) -> int:
    """The address of a float32 vector, such as a norm's weights or a bias; 0 for None."""
    if array is not None and (not isinstance(array, np.ndarray) or array.dtype != np.float32):
        raise Unsupported(f"the loops need float32 vectors, got {getattr(array, 'dtype', type(array).__name__)}")
    return address(array)


def describe(record: Any, weight: Weight, bias: Any = None) -> Any:
    """Fill in the record of a weight. Returns arrays that it refers to and nobody else keeps.

    Raises Unsupported.
    """
    weight = getattr(weight, "weight", weight)  # a plain matrix
    record["height"], record["width"] = weight.shape
    record["bias"] = vector(bias)
    if isinstance(weight, np.ndarray) and weight.dtype == np.float32:
        by_columns = not weight.flags.c_contiguous
        record["form"] = COLUMNS if by_columns else FLOAT32
        record["codes"] = address(weight.T if by_columns else weight)
    elif isinstance(weight, Columns):
        record["form"], record["codes"] = COLUMNS, address(weight.columns)
    elif isinstance(weight, Half):
        record["form"], record["codes"] = HALVES[np.dtype(weight.dtype)], address(weight.codes)
    elif isinstance(weight, Groups):
        return describe_groups(record, weight)
    else:
        raise Unsupported(f"there are no loops for {type(weight).__name__}")
    if record["form"] == COLUMNS and record["width"] % 8:
        raise Unsupported(f"the loops need columns in multiples of 8, got {record['width']}")
    return None


def describe_groups(record: Any, groups: Groups) -> Any:
    """Fill in the record of a matrix of codes in groups; see `describe`."""
    scales = [scale.dtype for scale in (groups.scale, groups.minimum) if scale is not None]
    codes = np.uint8 if groups.bits == 4 else np.int8
    if groups.codes.dtype != codes or len({*scales}) > 1 or scales[0] not in (np.float32, ml_dtypes.bfloat16):
        raise Unsupported(f"there are no loops for codes in {groups.codes.dtype} and scales in {scales[0]}")
    if groups.codes.shape[-1] != ROWS:
        raise Unsupported(f"the loops need blocks of {ROWS} rows, got {groups.codes.shape[-1]}")
    if groups.group % 8:
        raise Unsupported(f"the loops need groups in multiples of 8, got {groups.group}")
    record["form"] = NIBBLES if groups.bits == 4 else BYTES
    record["codes"], record["scale"] = address(groups.codes), address(groups.scale)
    record["minimum"] = address(groups.minimum)
    record["narrow"] = groups.scale.dtype == ml_dtypes.bfloat16
    record["group"], record["offset"] = groups.group, groups.offset
    if groups.values is None:
        return None
    if groups.offset or groups.minimum is not None:
        raise Unsupported("there are no loops for codes with values, and an offset or minima")
    values = groups.values(np.arange(16, dtype=np.uint8)).astype(np.float32)
    record["values"] = address(values)
    return values
