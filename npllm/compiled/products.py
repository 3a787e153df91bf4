"""The product of a stored matrix with one vector or a few: each weight is read once, widened, and used at once.

A weight is a record (records.py). The threads share its rows. A piece of them is widened to float32 in a buffer that
stays in the processor's first cache, and multiplied by all vectors. The definition is `linear(x, weight)`.

Where rows lie one after the other, a product is a sum along the row, in all lanes of a vector register. Where the row
index runs fastest, as in groups of codes, the lanes hold sums of different rows, and no sum across lanes is needed.
"""

import numpy as np

from .jit import bfloat16, float16, jit, view
from .records import BFLOAT16, BYTES, COLUMNS, FLOAT32
from .team import count

F32, U16, I8, U8 = np.float32(0), np.uint16(0), np.int8(0), np.uint8(0)  # for `view`
number = np.float32
AT_ONCE = 64  # rows that a thread takes at a time
SEGMENT, TILE_ROWS = 512, 8  # elements and rows that are widened at a time for a few vectors: 16 KB
LANES = 64  # columns that are summed at a time


@jit
def dot(a, b):
    """a · b"""
    total = np.float32(0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@jit
def dot_bfloat16(codes, x):
    """codes · x, for numbers in bfloat16, widened in registers."""
    total = np.float32(0)
    for i in range(len(x)):
        total += bfloat16(codes[i]) * x[i]
    return total


@jit
def dot_float16(codes, x):
    """codes · x, for numbers in float16."""
    total = np.float32(0)
    for i in range(len(x)):
        total += float16(codes[i]) * x[i]
    return total


@jit
def multiply_rows(w, x, y, first, last):
    """y[first:last] = W[first:last] x, for a matrix with row after row and one vector."""
    numbers, codes = view(w["codes"], (w["height"], w["width"]), F32), view(w["codes"], (w["height"], w["width"]), U16)
    if w["form"] == FLOAT32:
        for f in range(first, last):
            y[f] = dot(numbers[f], x)
    elif w["form"] == BFLOAT16:
        for f in range(first, last):
            y[f] = dot_bfloat16(codes[f], x)
    else:
        for f in range(first, last):
            y[f] = dot_float16(codes[f], x)


@jit
def eight_dots(p, q, a, b, c, d):
    """The products of two rows with four vectors, in one loop: six loads for eight sums."""
    pa = pb = pc = pd = qa = qb = qc = qd = np.float32(0)
    for i in range(len(p)):
        pa += p[i] * a[i]
        pb += p[i] * b[i]
        pc += p[i] * c[i]
        pd += p[i] * d[i]
        qa += q[i] * a[i]
        qb += q[i] * b[i]
        qc += q[i] * c[i]
        qd += q[i] * d[i]
    return (pa, pb, pc, pd), (qa, qb, qc, qd)


@jit
def widen_rows(w, first, last, start, stop, out):
    """W[first:last, start:stop] in float32, for a matrix with row after row."""
    numbers, codes = view(w["codes"], (w["height"], w["width"]), F32), view(w["codes"], (w["height"], w["width"]), U16)
    for f in range(first, last):
        row = out[f - first]
        if w["form"] == FLOAT32:
            row[: stop - start] = numbers[f, start:stop]
        elif w["form"] == BFLOAT16:
            widen_bfloat16(codes[f, start:stop], row)
        else:
            widen_float16(codes[f, start:stop], row)


@jit
def widen_bfloat16(codes, out):
    """The numbers with these bits."""
    for i in range(len(codes)):
        out[i] = bfloat16(codes[i])


@jit
def widen_float16(codes, out):
    """The numbers with these bits."""
    for i in range(len(codes)):
        out[i] = float16(codes[i])


@jit
def multiply_rows_few(w, x, y, first, last):
    """y[:, first:last] = x W[first:last]ᵀ, for a few vectors: a segment of some rows and of four vectors at a time.

    These fit in the first cache. Vectors beyond a multiple of four are computed like the last, and not used.
    """
    tile, end = np.empty((TILE_ROWS, SEGMENT), np.float32), len(x) - 1
    y[:, first:last] = 0
    for start in range(0, w["width"], SEGMENT):
        stop = min(start + SEGMENT, w["width"])
        n = stop - start
        for top in range(first, last, TILE_ROWS):
            bottom = min(top + TILE_ROWS, last)
            widen_rows(w, top, bottom, start, stop, tile)
            for t in range(0, len(x), 4):
                a, b = x[t, start:stop], x[min(t + 1, end), start:stop]
                c, d = x[min(t + 2, end), start:stop], x[min(t + 3, end), start:stop]
                for f in range(top, bottom, 2):
                    g = min(f + 1, bottom - 1)
                    of_f, of_g = eight_dots(tile[f - top, :n], tile[g - top, :n], a, b, c, d)
                    for i in range(min(4, len(x) - t)):
                        y[t + i, f] += of_f[i]
                        if g > f:
                            y[t + i, g] += of_g[i]


@jit
def add_columns(tile, x, y):
    """y += Σ x[n] · tile[n], for some columns [n, rows]: eight at a time, so that y is read and written less often."""
    whole = len(tile) // 8 * 8
    for n in range(0, whole, 8):
        x0, x1, x2, x3, x4, x5, x6, x7 = x[n], x[n + 1], x[n + 2], x[n + 3], x[n + 4], x[n + 5], x[n + 6], x[n + 7]
        for r in range(len(y)):
            a, b, c, d = number(tile[n, r]), number(tile[n + 1, r]), number(tile[n + 2, r]), number(tile[n + 3, r])
            e, f, g, h = number(tile[n + 4, r]), number(tile[n + 5, r]), number(tile[n + 6, r]), number(tile[n + 7, r])
            y[r] += ((a * x0 + b * x1) + (c * x2 + d * x3)) + ((e * x4 + f * x5) + (g * x6 + h * x7))
    for n in range(whole, len(tile)):
        for r in range(len(y)):
            y[r] += number(tile[n, r]) * x[n]


@jit
def add_nibbles(codes, x, y):
    """y += Σ x[n] · column n, for codes of 4 bits, two in a byte; see storage/nibbles.py for their order."""
    half = len(codes)
    for n in range(0, half, 4):
        x0, x1, x2, x3 = x[n], x[n + 1], x[n + 2], x[n + 3]
        x4, x5, x6, x7 = x[half + n], x[half + n + 1], x[half + n + 2], x[half + n + 3]
        for r in range(len(y)):
            a, b, c, d = (
                np.int32(codes[n, r]),
                np.int32(codes[n + 1, r]),
                np.int32(codes[n + 2, r]),
                np.int32(codes[n + 3, r]),
            )
            lower = (number(a & 15) * x0 + number(b & 15) * x1) + (number(c & 15) * x2 + number(d & 15) * x3)
            upper = (number(a >> 4) * x4 + number(b >> 4) * x5) + (number(c >> 4) * x6 + number(d >> 4) * x7)
            y[r] += lower + upper


@jit
def add_columns_four(tile, x, y):
    """y[0:4] += Σ x[0:4, n] · tile[n]: four vectors and four columns at a time."""
    y0, y1, y2, y3 = y[0], y[1], y[2], y[3]
    for n in range(0, len(tile), 4):
        a0, b0, c0, d0 = x[0, n], x[0, n + 1], x[0, n + 2], x[0, n + 3]
        a1, b1, c1, d1 = x[1, n], x[1, n + 1], x[1, n + 2], x[1, n + 3]
        a2, b2, c2, d2 = x[2, n], x[2, n + 1], x[2, n + 2], x[2, n + 3]
        a3, b3, c3, d3 = x[3, n], x[3, n + 1], x[3, n + 2], x[3, n + 3]
        for r in range(len(y0)):
            a, b, c, d = tile[n, r], tile[n + 1, r], tile[n + 2, r], tile[n + 3, r]
            y0[r] += (a * a0 + b * b0) + (c * c0 + d * d0)
            y1[r] += (a * a1 + b * b1) + (c * c1 + d * d1)
            y2[r] += (a * a2 + b * b2) + (c * c2 + d * d2)
            y3[r] += (a * a3 + b * b3) + (c * c3 + d * d3)


@jit
def multiply_columns(w, x, y, first, last):
    """y[:, first:last] = x W[first:last]ᵀ, for a float32 matrix with column after column."""
    columns = view(w["codes"], (w["width"], w["height"]), F32)
    y[:, first:last] = 0
    for start in range(0, w["width"], 64):
        for t in range(len(x)):
            add_columns(columns[start : start + 64, first:last], x[t, start : start + 64], y[t, first:last])


@jit
def widen_bytes(codes, out):
    """Codes of 8 bits as float32."""
    for n in range(codes.shape[0]):
        for r in range(codes.shape[1]):
            out[n, r] = np.float32(codes[n, r])


@jit
def widen_nibbles(codes, out):
    """Codes of 4 bits as float32: the lower ones of all bytes, then the upper ones (storage/nibbles.py)."""
    half = codes.shape[0]
    for n in range(half):
        for r in range(codes.shape[1]):
            code = np.int32(codes[n, r])
            out[n, r] = np.float32(code & 15)
            out[half + n, r] = np.float32(code >> 4)


@jit
def look_up(values, tile):
    """Codes that stand for other numbers, replaced by them."""
    for n in range(tile.shape[0]):
        for r in range(tile.shape[1]):
            tile[n, r] = values[np.int32(tile[n, r])]


@jit
def widen_scales(w, name, block, g, out):
    """The scales, or the minima, of a group of all rows of a block."""
    shape = (w["height"], w["width"] // w["group"], w["rows"])  # more blocks than there are
    if w["narrow"]:
        widen_bfloat16(view(name, shape, U16)[block, g], out)
    else:
        out[:] = view(name, shape, F32)[block, g]


@jit
def multiply_block(w, x, sums, y, block):
    """y = x Wᵀ for one block of rows stored in groups. `sums`: of the elements of each group of a vector.

    A row's product is Σ scale · (codes · x) + (scale · offset + minimum) · Σ x, over its groups.
    """
    groups, group, lanes = w["width"] // w["group"], w["group"], w["rows"]
    first = block * lanes
    tile, partial = np.empty((group, lanes), np.float32), np.empty((4, lanes), np.float32)
    scale, minimum = np.empty(lanes, np.float32), np.zeros(lanes, np.float32)
    totals = np.zeros((len(x), lanes), np.float32)
    in_registers = len(x) == 1 and not w["values"]  # one vector: the codes are widened as they are multiplied
    for g in range(groups):
        bytes_ = view(w["codes"], (block + 1, groups, group, lanes), I8)[block, g]
        nibbles = view(w["codes"], (block + 1, groups, group // 2, lanes), U8)[block, g]
        if not in_registers and w["form"] == BYTES:
            widen_bytes(bytes_, tile)
        elif not in_registers:
            widen_nibbles(nibbles, tile)
            if w["values"]:
                look_up(view(w["values"], (16,), F32), tile)
        widen_scales(w, w["scale"], block, g, scale)
        if w["minimum"]:
            widen_scales(w, w["minimum"], block, g, minimum)
        of_group = x[:, g * group : (g + 1) * group]
        t = 0
        while t < len(x):
            partial[:] = 0
            count = 4 if t + 4 <= len(x) else 1
            if count == 4:
                add_columns_four(tile, of_group[t : t + 4], partial)
            elif not in_registers:
                add_columns(tile, of_group[t], partial[0])
            elif w["form"] == BYTES:
                add_columns(bytes_, of_group[t], partial[0])
            else:
                add_nibbles(nibbles, of_group[t], partial[0])
            for i in range(count):
                add_scaled(partial[i], scale, minimum, w["offset"], sums[t + i, g], totals[t + i])
            t += count
    y[:, first : first + count_of(w, block)] = totals[:, : count_of(w, block)]


@jit
def count_of(w, block):
    """The rows of a block: the last may have unused ones."""
    return min(w["rows"], w["height"] - block * w["rows"])


@jit
def add_scaled(partial, scale, minimum, offset, of_x, total):
    """total += scale · partial + (scale · offset + minimum) · of_x"""
    for r in range(len(total)):
        total[r] += scale[r] * partial[r] + (scale[r] * offset + minimum[r]) * of_x


@jit
def sums_of_groups(x, group, out):
    """The sum of each group of elements of each vector."""
    for t in range(len(x)):
        for g in range(x.shape[1] // group):
            out[t, g] = x[t, g * group : (g + 1) * group].sum()


@jit
def add_bias(w, y, first, last):
    """y[:, first:last] += bias"""
    if w["bias"]:
        bias = view(w["bias"], (w["height"],), F32)
        for t in range(len(y)):
            for f in range(first, last):
                y[t, f] += bias[f]


@jit
def product(w, x, y, counters, phase):
    """y = x Wᵀ + bias, by all threads: each calls this with the same arguments, then must `wait` for the others."""
    in_blocks = w["form"] >= BYTES
    at_once = w["rows"] if in_blocks else LANES if w["form"] == COLUMNS else AT_ONCE
    sums = np.empty((len(x), w["width"] // w["group"] if in_blocks else 0), np.float32)
    if in_blocks:
        sums_of_groups(x, w["group"], sums)
    while True:
        piece = count(counters, phase)
        first = piece * at_once
        if first >= w["height"]:
            return
        last = min(first + at_once, w["height"])
        if in_blocks:
            multiply_block(w, x, sums, y, piece)
        elif w["form"] == COLUMNS:
            multiply_columns(w, x, y, first, last)
        elif len(x) == 1:
            multiply_rows(w, x[0], y[0], first, last)
        else:
            multiply_rows_few(w, x, y, first, last)
        add_bias(w, y, first, last)


@jit
def product_alone(thread, threads, w, x, y, counters):
    """`product` as a call of its own, for `Team.run`."""
    product(w, x, y, counters, 0)
