"""The product of a stored matrix with one vector or a few: memory delivers each weight once, as narrow as it is stored.

A weight is a record (records.py). The threads share its rows. The definition is `linear(x, weight)`.

Where rows lie one after the other, a product is a sum along the row, in all lanes of a vector register. Where the row
index runs fastest, as in groups of codes, the lanes hold sums of different rows, and no sum across lanes is needed.
These loops have a constant length, ROWS: then the compiled code need not find out first whether the arrays overlap and
how many rows are left over, which takes as long as the 96 rows.
"""

import numpy as np

from ..storage.groups import ROWS
from .jit import jit, view, widened
from .records import BFLOAT16, BYTES, COLUMNS, FLOAT32
from .team import count

F32, U16, I16, I8, U8 = np.float32(0), np.uint16(0), np.int16(0), np.int8(0), np.uint8(0)  # for `view`
number = np.float32
AT_ONCE = 32  # rows that a thread takes at a time: they stay in its L2 cache for the next vectors
LANES = 4 * ROWS  # the same, of a matrix with column after column
COLUMNS_AT_ONCE = 32


@jit
def dot(a, b):
    """a · b, where a may be narrow: it is widened in registers."""
    total = np.float32(0)
    for i in range(len(b)):
        total += widened(a[i]) * b[i]
    return total


@jit
def eight_dots(p, q, a, b, c, d):
    """The products of two rows with four vectors, in one loop: six loads for eight sums."""
    pa = pb = pc = pd = qa = qb = qc = qd = np.float32(0)
    for i in range(len(a)):
        u, v = widened(p[i]), widened(q[i])
        pa += u * a[i]
        pb += u * b[i]
        pc += u * c[i]
        pd += u * d[i]
        qa += v * a[i]
        qb += v * b[i]
        qc += v * c[i]
        qd += v * d[i]
    return (pa, pb, pc, pd), (qa, qb, qc, qd)


@jit
def dots(rows, x, y, first, last):
    """y[:, first:last] = x rows[first:last]ᵀ

    The product with the first vector brings the rows into the cache, at the speed of memory: its loop is so short that
    the processor reads far ahead. The loop over four vectors does not, and would wait for each line.
    """
    for f in range(first, last):
        y[0, f] = dot(rows[f], x[0])
    end = len(x) - 1
    for t in range(1, len(x), 4):
        b, c, d = min(t + 1, end), min(t + 2, end), min(t + 3, end)  # the last one again, where there are not four
        for f in range(first, last, 2):
            g = min(f + 1, last - 1)
            of_f, of_g = eight_dots(rows[f], rows[g], x[t], x[b], x[c], x[d])
            for i in range(min(4, len(x) - t)):
                y[t + i, f], y[t + i, g] = of_f[i], of_g[i]


@jit
def multiply_rows(w, x, y, first, last):
    """y[:, first:last] = x W[first:last]ᵀ, for a matrix with row after row."""
    shape = (w["height"], w["width"])
    if w["form"] == FLOAT32:
        dots(view(w["codes"], shape, F32), x, y, first, last)
    elif w["form"] == BFLOAT16:
        dots(view(w["codes"], shape, U16), x, y, first, last)
    else:
        dots(view(w["codes"], shape, I16), x, y, first, last)


@jit
def add_columns(codes, x, y):
    """y += Σ x[n] · column n, for a group of columns of ROWS numbers, eight at a time."""
    for n in range(0, len(x), 8):
        x0, x1, x2, x3, x4, x5, x6, x7 = x[n], x[n + 1], x[n + 2], x[n + 3], x[n + 4], x[n + 5], x[n + 6], x[n + 7]
        columns = codes[n * ROWS : (n + 8) * ROWS]
        for r in range(ROWS):
            a, b = number(columns[r]), number(columns[ROWS + r])
            c, d = number(columns[2 * ROWS + r]), number(columns[3 * ROWS + r])
            e, f = number(columns[4 * ROWS + r]), number(columns[5 * ROWS + r])
            g, h = number(columns[6 * ROWS + r]), number(columns[7 * ROWS + r])
            y[r] += ((a * x0 + b * x1) + (c * x2 + d * x3)) + ((e * x4 + f * x5) + (g * x6 + h * x7))


@jit
def add_columns_four(codes, x, y):
    """The same for four vectors x [4, elements] and four columns at a time; y [4 ROWS]."""
    for n in range(0, x.shape[1], 4):
        a0, b0, c0, d0 = x[0, n], x[0, n + 1], x[0, n + 2], x[0, n + 3]
        a1, b1, c1, d1 = x[1, n], x[1, n + 1], x[1, n + 2], x[1, n + 3]
        a2, b2, c2, d2 = x[2, n], x[2, n + 1], x[2, n + 2], x[2, n + 3]
        a3, b3, c3, d3 = x[3, n], x[3, n + 1], x[3, n + 2], x[3, n + 3]
        columns = codes[n * ROWS : (n + 4) * ROWS]
        for r in range(ROWS):
            a, b = number(columns[r]), number(columns[ROWS + r])
            c, d = number(columns[2 * ROWS + r]), number(columns[3 * ROWS + r])
            y[r] += (a * a0 + b * b0) + (c * c0 + d * d0)
            y[ROWS + r] += (a * a1 + b * b1) + (c * c1 + d * d1)
            y[2 * ROWS + r] += (a * a2 + b * b2) + (c * c2 + d * d2)
            y[3 * ROWS + r] += (a * a3 + b * b3) + (c * c3 + d * d3)


@jit
def lower(code):
    """The lower code of 4 bits in a byte. Without the cast, Numba would compute in 64 bits."""
    return number(np.int32(code & 15))


@jit
def upper(code):
    """The upper code of 4 bits in a byte."""
    return number(np.int32(code >> 4))


@jit
def add_nibbles(codes, x, y):
    """`add_columns` for codes of 4 bits, two in a byte; see storage/nibbles.py for their order."""
    half = len(x) // 2
    for n in range(0, half, 4):
        x0, x1, x2, x3 = x[n], x[n + 1], x[n + 2], x[n + 3]
        x4, x5, x6, x7 = x[half + n], x[half + n + 1], x[half + n + 2], x[half + n + 3]
        columns = codes[n * ROWS : (n + 4) * ROWS]
        for r in range(ROWS):
            a, b = np.int32(columns[r]), np.int32(columns[ROWS + r])
            c, d = np.int32(columns[2 * ROWS + r]), np.int32(columns[3 * ROWS + r])
            of_lower = (lower(a) * x0 + lower(b) * x1) + (lower(c) * x2 + lower(d) * x3)
            of_upper = (upper(a) * x4 + upper(b) * x5) + (upper(c) * x6 + upper(d) * x7)
            y[r] += of_lower + of_upper


@jit
def add_nibbles_four(codes, x, y):
    """`add_columns_four` for codes of 4 bits."""
    half = x.shape[1] // 2
    for n in range(0, half, 2):
        a0, b0, c0, d0 = x[0, n], x[0, n + 1], x[0, half + n], x[0, half + n + 1]
        a1, b1, c1, d1 = x[1, n], x[1, n + 1], x[1, half + n], x[1, half + n + 1]
        a2, b2, c2, d2 = x[2, n], x[2, n + 1], x[2, half + n], x[2, half + n + 1]
        a3, b3, c3, d3 = x[3, n], x[3, n + 1], x[3, half + n], x[3, half + n + 1]
        columns = codes[n * ROWS : (n + 2) * ROWS]
        for r in range(ROWS):
            p, q = np.int32(columns[r]), np.int32(columns[ROWS + r])
            a, b, c, d = lower(p), lower(q), upper(p), upper(q)
            y[r] += (a * a0 + b * b0) + (c * c0 + d * d0)
            y[ROWS + r] += (a * a1 + b * b1) + (c * c1 + d * d1)
            y[2 * ROWS + r] += (a * a2 + b * b2) + (c * c2 + d * d2)
            y[3 * ROWS + r] += (a * a3 + b * b3) + (c * c3 + d * d3)


@jit
def look_up(values, codes, out):
    """The values that a group's codes of 4 bits stand for."""
    for i in range(len(codes)):
        out[i] = values[codes[i] & 15]
        out[len(codes) + i] = values[codes[i] >> 4]


@jit
def scales_of(w, g, scale, shift):
    """Fill in what the codes of group g are multiplied by, and what is added: scale · offset + minimum."""
    shape = (g + 1, ROWS)  # two views of one address: only that of the right dtype is read, here and below
    widen(w, view(w["scale"], shape, F32)[g], view(w["scale"], shape, U16)[g], scale)
    shift[:] = 0
    if w["minimum"]:
        widen(w, view(w["minimum"], shape, F32)[g], view(w["minimum"], shape, U16)[g], shift)
    for r in range(ROWS):
        shift[r] += scale[r] * w["offset"]


@jit
def widen(w, plain, narrow, out):
    """The scales or minima of a group, which are float32 or bfloat16."""
    for r in range(ROWS):
        out[r] = widened(narrow[r]) if w["narrow"] else plain[r]


@jit
def multiply_block(w, x, sums, y, block):
    """y[:, rows] = x W[rows]ᵀ for a block of ROWS rows in groups. `sums`: of the elements of each group of a vector.

    A row's product is Σ scale · (codes · x) + (scale · offset + minimum) · Σ x, over its groups.
    """
    group, groups = w["group"], w["width"] // w["group"]
    partial, totals = np.empty(4 * ROWS, np.float32), np.zeros((len(x), ROWS), np.float32)
    scale, shift = np.empty(ROWS, np.float32), np.empty(ROWS, np.float32)
    values = np.empty(group * ROWS if w["values"] else 0, np.float32)
    for i in range(groups):
        g = block * groups + i
        bytes_ = view(w["codes"], (g + 1, group * ROWS), I8)[g]
        nibbles = view(w["codes"], (g + 1, group // 2 * ROWS), U8)[g]
        if w["values"]:
            look_up(view(w["values"], (16,), F32), nibbles, values)
        scales_of(w, g, scale, shift)
        t = 0
        while t < len(x):
            together = 4 if t + 4 <= len(x) else 1
            of_group = x[t : t + together, i * group : (i + 1) * group]
            partial[: together * ROWS] = 0
            if w["values"]:
                add_group(values, of_group, partial)
            elif w["form"] == BYTES:
                add_group(bytes_, of_group, partial)
            elif together == 4:
                add_nibbles_four(nibbles, of_group, partial)
            else:
                add_nibbles(nibbles, of_group[0], partial)
            for j in range(together):
                for r in range(ROWS):
                    totals[t + j, r] += scale[r] * partial[j * ROWS + r] + shift[r] * sums[t + j, i]
            t += together
    first = block * ROWS
    used = min(ROWS, w["height"] - first)  # the last block may have unused rows
    y[:, first : first + used] = totals[:, :used]


@jit
def add_group(codes, x, y):
    """`add_columns` for one vector x [1, elements], or for four."""
    if len(x) == 4:
        add_columns_four(codes, x, y)
    else:
        add_columns(codes, x[0], y)


@jit
def multiply_columns(w, x, y, first, last):
    """y[:, first:last] = x W[first:last]ᵀ, for a float32 matrix with column after column.

    Some columns are copied, ROWS rows of them next to each other, which are then like a group.
    """
    columns, size = view(w["codes"], (w["width"], w["height"]), F32), COLUMNS_AT_ONCE * ROWS
    groups, partial = np.empty((LANES // ROWS, size), np.float32), np.empty(4 * ROWS, np.float32)
    y[:, first:last] = 0
    for start in range(0, w["width"], COLUMNS_AT_ONCE):
        stop = min(start + COLUMNS_AT_ONCE, w["width"])
        for n in range(start, stop):
            for top in range(first, last, ROWS):
                column = columns[n, top : min(top + ROWS, last)]
                place = groups[(top - first) // ROWS, (n - start) * ROWS : (n - start + 1) * ROWS]
                for r in range(len(column)):
                    place[r] = column[r]
        for top in range(first, last, ROWS):
            t = 0
            while t < len(x):
                together = 4 if t + 4 <= len(x) else 1
                partial[: together * ROWS] = 0
                add_group(groups[(top - first) // ROWS], x[t : t + together, start:stop], partial)
                for j in range(together):
                    for r in range(min(ROWS, last - top)):
                        y[t + j, top + r] += partial[j * ROWS + r]
                t += together


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
    at_once = ROWS if in_blocks else LANES if w["form"] == COLUMNS else AT_ONCE
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
        else:
            multiply_rows(w, x, y, first, last)
        add_bias(w, y, first, last)


@jit
def product_alone(thread, threads, w, x, y, counters):
    """`product` as a call of its own, for `Team.run`."""
    product(w, x, y, counters, 0)
