"""CUDA kernels for a decode step: one new token, whose every product is a matrix times a vector.

They are optional, and second to the readable source. What each computes is said by a function of kernel_twins.py (the
two of attention by one); the comments in the CUDA text say how: what a block and a thread do, what is read from
memory, and how often. The speed of a decode step is that of the memory, so each weight, key and value is read once, in
its own width, and widened to float32 in registers. All sums are float32.

A kernel is compiled by NVRTC when it is first launched, for the types and sizes at hand (`options`), and kept by CuPy
in its cache on disk.

Source: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"; Dao et al. 2023, "Flash-Decoding for
long-context inference"; the CUDA C++ programming guide, on warp shuffles and coalesced access.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from ..arrays import Array, Bool, Float, Int
from ..config import Config
from ..storage.rows import RowGroups

ROWS = 4  # warps in a block of a matrix-vector product, and so rows
NORM_THREADS = 1024
CHUNK = 128  # keys that one block of `attend` works on
ATTEND_THREADS = 256
RECALL_ROWS = 256  # of a product, for one block to copy
SHARED_BYTES = 48 * 1024  # of a block's shared memory, without asking for more

COMMON = r"""
#include <cuda_fp16.h>

// Four numbers side by side, in one load: 8 bytes of float16, 16 of float32. Neighbouring threads read neighbouring
// fours, so that a warp reads whole lines of memory ("coalesced").
__device__ float4 load4(const __half* from)
{
    const uint2 raw = *reinterpret_cast<const uint2*>(from);
    const __half* halves = reinterpret_cast<const __half*>(&raw);
    return make_float4(
        __half2float(halves[0]), __half2float(halves[1]), __half2float(halves[2]), __half2float(halves[3]));
}

__device__ float4 load4(const float* from) { return *reinterpret_cast<const float4*>(from); }

__device__ float dot4(float4 a, float4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }

// The sum over the 32 threads of a warp, in all of them: five exchanges of registers, no memory.
__device__ float warp_sum(float x)
{
    for (int distance = 16; distance > 0; distance /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, distance);
    return x;
}

__device__ float warp_max(float x)
{
    for (int distance = 16; distance > 0; distance /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, distance));
    return x;
}
"""

# How a weight's row is read, for the two storages: `number` reads one number of a row, `row_times` multiplies the row
# by a vector, the threads of a warp sharing the work. Plain matrices have neither scale nor minimum.
PLAIN_ROW = r"""
__device__ float number(const NUMBER* codes, const SCALE*, const SCALE*, size_t row, int i, int width)
{
    return float(codes[row * width + i]);
}

__device__ float row_times(
    const NUMBER* codes, const SCALE*, const SCALE*, size_t row, const float* x, int width, int lane)
{
    const NUMBER* numbers = codes + row * width;
    const int fours = width % 4 == 0 ? width / 4 : 0;  // where every row starts at a multiple of four numbers
    float sum = 0.0f;
    #pragma unroll 4
    for (int i = lane; i < fours; i += 32)
        sum += dot4(load4(numbers + 4 * i), load4(x + 4 * i));
    for (int i = 4 * fours + lane; i < width; i += 32)
        sum += float(numbers[i]) * x[i];
    return warp_sum(sum);
}
"""

# W = scale · (code + OFFSET) + minimum, with a scale and a minimum for each GROUP numbers of a row. So a group's part
# of the product is scale · Σ code·x + (scale · OFFSET + minimum) · Σ x. A thread reads 4 bytes of codes at a time.
GROUPS_ROW = r"""
__device__ float widen(float x) { return x; }

__device__ float widen(unsigned short bfloat16) { return __uint_as_float((unsigned)bfloat16 << 16); }

__device__ float number(const NUMBER* codes, const SCALE* scale, const SCALE* minimum, size_t row, int i, int width)
{
    const size_t group = row * (width / GROUP) + i / GROUP;
#if BITS == 8
    const float code = codes[row * width + i];
#else  // a byte has a number of the group's first half in its lower four bits, and of the second half in the upper
    const int inside = i % GROUP;
    const NUMBER both = codes[group * (GROUP / 2) + inside % (GROUP / 2)];
    const float code = inside < GROUP / 2 ? both & 15 : both >> 4;
#endif
    return widen(scale[group]) * (code + OFFSET) + (minimum == nullptr ? 0.0f : widen(minimum[group]));
}

__device__ float row_times(
    const NUMBER* codes, const SCALE* scale, const SCALE* minimum, size_t row, const float* x, int width, int lane)
{
    const NUMBER* bytes = codes + row * (size_t)(width * BITS / 8);
    float sum = 0.0f;
    #pragma unroll 4
    for (int i = 4 * lane; i < width * BITS / 8; i += 4 * 32) {
        const FOUR four = *reinterpret_cast<const FOUR*>(bytes + i);
#if BITS == 8
        const int in_row = i / GROUP;
        const float4 at = load4(x + i);
        const float products = dot4(make_float4(four.x, four.y, four.z, four.w), at);
        const float plain = at.x + at.y + at.z + at.w;
#else
        const int in_row = i / (GROUP / 2);
        const int first = in_row * GROUP + i % (GROUP / 2);
        const float4 low = load4(x + first), high = load4(x + first + GROUP / 2);
        const float products = dot4(make_float4(four.x & 15, four.y & 15, four.z & 15, four.w & 15), low)
            + dot4(make_float4(four.x >> 4, four.y >> 4, four.z >> 4, four.w >> 4), high);
        const float plain = low.x + low.y + low.z + low.w + high.x + high.y + high.z + high.w;
#endif
        const size_t group = row * (width / GROUP) + in_row;
        const float step = widen(scale[group]);
        const float shift = step * OFFSET + (minimum == nullptr ? 0.0f : widen(minimum[group]));
        sum += step * products + shift * plain;
    }
    return warp_sum(sum);
}
"""

# A thread for each number of the row.
EMBED = r"""
extern "C" __global__ void embed(
    const NUMBER* codes, const SCALE* scale, const SCALE* minimum, const long long* id, float* out, int width)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < width)
        out[i] = number(codes, scale, minimum, *id, i, width);
}
"""

# A warp for each row of W, four rows in a block. W is read once from memory. The vector x is read again by every warp,
# but it is small (D or F numbers) and stays in the caches.
MATVEC = r"""
extern "C" __global__ void matvec(
    const NUMBER* codes, const SCALE* scale, const SCALE* minimum, const float* x, const float* bias,
    const float* residual, float* out, int height, int width)
{
    const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= height)  // the whole warp leaves, so that none is missing when sums are exchanged
        return;
    float y = row_times(codes, scale, minimum, row, x, width, lane);
    if (lane == 0) {
        if (bias != nullptr)
            y += bias[row];
        out[row] = residual == nullptr ? y : residual[row] + y;
    }
}
"""

# The same for two rows, one of gate and one of up, which meet in registers: neither is ever written to memory.
SWIGLU = r"""
extern "C" __global__ void swiglu(
    const NUMBER* codes, const SCALE* scale, const SCALE* minimum, const float* x, const float* bias,
    float* out, int height, int width)
{
    const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= height)
        return;
    float gate = row_times(codes, scale, minimum, row, x, width, lane);
    float up = row_times(codes, scale, minimum, row + height, x, width, lane);
    if (lane == 0) {
        if (bias != nullptr) {
            gate += bias[row];
            up += bias[row + height];
        }
        out[row] = gate / (1.0f + expf(fminf(-gate, 88.0f))) * up;  // e to the 89 overflows float32
    }
}
"""

# W x, which a step may have computed: `product` is that of the vector `known`. Each block looks for itself whether x is
# that vector, bit by bit; both are small and come from the caches. If so, it copies its part, a thread for each number,
# and W is not read. If not, it multiplies, each warp one row after the other.
RECALL = r"""
extern "C" __global__ void recall(
    const NUMBER* codes, const SCALE* scale, const SCALE* minimum, const float* x, const float* known,
    const float* product, float* out, int height, int width)
{
    const int first = blockIdx.x * blockDim.x, end = min(first + (int)blockDim.x, height);
    int differs = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        differs |= __float_as_int(x[i]) != __float_as_int(known[i]);
    if (!__syncthreads_or(differs)) {  // one answer for all threads of the block
        const int row = first + threadIdx.x;
        if (row < end)
            out[row] = product[row];
        return;
    }
    for (int row = first + threadIdx.x / 32; row < end; row += blockDim.x / 32) {
        const float y = row_times(codes, scale, minimum, row, x, width, threadIdx.x % 32);
        if (threadIdx.x % 32 == 0)
            out[row] = y;
    }
}
"""

# One block for the vector. Each thread adds up the squares of its numbers, each warp those of its threads; the warps'
# sums meet in shared memory. x is read twice, the second time from the cache next to the block.
RMS_NORM = r"""
extern "C" __global__ void rms_norm(const float* x, const float* weight, float eps, float* out, int width)
{
    __shared__ float of_warps[32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float squares = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        squares += x[i] * x[i];
    squares = warp_sum(squares);
    if (lane == 0)
        of_warps[warp] = squares;
    __syncthreads();
    squares = warp_sum(lane < blockDim.x / 32 ? of_warps[lane] : 0.0f);  // each warp adds up all: no second barrier
    const float root = sqrtf(squares / width + eps);
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        out[i] = x[i] / root * weight[i];
}
"""

# A block for each head of the queries, the keys and the values, a thread for each of its numbers. A thread of a pair
# computes its own half of the rotation. Keys and values are written to the cache at once, in the cache's width.
ROPE_AND_APPEND = r"""
extern "C" __global__ void rope_and_append(
    const float* qkv, const float* cos, const float* sin, int table_rows, int past, const int* counter,
    CACHE* keys, CACHE* values, float* queries, int heads, int kv_heads, int pairs, int capacity)
{
    const int head = blockIdx.x, width = blockDim.x, i = threadIdx.x;
    const int slot = counter == nullptr ? past : *counter;
    const float* x = qkv + head * width;
    float y = x[i];
    if (head < heads + kv_heads && i < 2 * pairs) {  // not the values; a head's last numbers may pass unrotated
        const int at = (table_rows == 1 ? 0 : slot) * pairs + i % pairs;
        const float other = i < pairs ? -x[i + pairs] : x[i - pairs];
        y = x[i] * cos[at] + other * sin[at];
    }
    if (head < heads) {
        queries[head * width + i] = y;
        return;
    }
    CACHE* cache = head < heads + kv_heads ? keys : values;
    const size_t kv_head = (head - heads) % kv_heads;
    cache[(kv_head * capacity + slot) * width + i] = CACHE(y);
}
"""

# A block for each key/value head and each CHUNK of the keys; it serves all SHARING queries of that head, so that a key
# and a value are read once also in grouped-query attention. Chunks without a visible slot have nothing to do: there
# are as many blocks as the cache has room for, because a captured launch cannot grow with the text.
#
# Eight threads share a key. Then one warp for each query makes shares of the scores; then a thread for each dimension
# sums up the values. The result is a chunk's own softmax: its largest score, the sum of its shares, and the values
# times the shares, not yet divided by the sum. `merge` puts the chunks together.
ATTEND = r"""
extern "C" __global__ void attend(
    const float* q, const CACHE* keys, const CACHE* values, const bool* visible, int past, const int* counter,
    int window, int capacity, float* largest, float* totals, float* mixed)
{
    __shared__ __align__(16) float queries[SHARING][WIDTH];
    __shared__ float shares[SHARING][CHUNK];
    __shared__ float parts[PARTS][SHARING][WIDTH];
    const int kv_head = blockIdx.x, chunk = blockIdx.y, chunks = gridDim.y;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int length = (counter == nullptr ? past : *counter) + 1;  // the new token sees itself
    const int first = max(chunk * CHUNK, window == 0 ? 0 : length - window);
    const int count = min(chunk * CHUNK + CHUNK, length) - first;
    if (count <= 0)
        return;
    keys += ((size_t)kv_head * capacity + first) * WIDTH;
    values += ((size_t)kv_head * capacity + first) * WIDTH;

    for (int i = threadIdx.x; i < SHARING * WIDTH; i += blockDim.x)
        queries[i / WIDTH][i % WIDTH] = q[kv_head * SHARING * WIDTH + i] / sqrtf(WIDTH);
    __syncthreads();  // all queries are there

    for (int start = 0; start < count; start += blockDim.x / 8) {
        const int key = start + threadIdx.x / 8;
        float scores[SHARING] = {};
        if (key < count)
            for (int i = 4 * (threadIdx.x % 8); i < WIDTH; i += 4 * 8) {
                const float4 four = load4(keys + (size_t)key * WIDTH + i);
                for (int g = 0; g < SHARING; g++)
                    scores[g] += dot4(load4(&queries[g][i]), four);
            }
        for (int g = 0; g < SHARING; g++) {
            for (int distance = 4; distance > 0; distance /= 2)
                scores[g] += __shfl_xor_sync(0xffffffffu, scores[g], distance);
            if (key < count && threadIdx.x % 8 == 0)
                shares[g][key] = visible == nullptr || visible[first + key] ? scores[g] : -3e38f;
        }
    }
    __syncthreads();  // all scores are there

    for (int g = warp; g < SHARING; g += blockDim.x / 32) {
        float most = -1e38f;  // above a hidden score: where all are hidden the shares are 0, not 1
        for (int i = lane; i < count; i += 32)
            most = fmaxf(most, shares[g][i]);
        most = warp_max(most);
        float total = 0.0f;
        for (int i = lane; i < count; i += 32) {
            shares[g][i] = expf(shares[g][i] - most);
            total += shares[g][i];
        }
        total = warp_sum(total);
        if (lane == 0) {
            largest[(kv_head * SHARING + g) * chunks + chunk] = most;
            totals[(kv_head * SHARING + g) * chunks + chunk] = total;
        }
    }
    __syncthreads();  // all shares are there

    const int dimension = threadIdx.x % WIDTH, part = threadIdx.x / WIDTH;
    if (part < PARTS) {  // where WIDTH does not divide the threads, some are left over
        float sums[SHARING] = {};
        #pragma unroll 4
        for (int i = part; i < count; i += PARTS) {
            const float value = float(values[(size_t)i * WIDTH + dimension]);
            for (int g = 0; g < SHARING; g++)
                sums[g] += shares[g][i] * value;
        }
        for (int g = 0; g < SHARING; g++)
            parts[part][g][dimension] = sums[g];
    }
    __syncthreads();  // all parts are there

    for (int i = threadIdx.x; i < SHARING * WIDTH; i += blockDim.x) {
        const int g = i / WIDTH;
        float sum = 0.0f;
        for (int p = 0; p < PARTS; p++)
            sum += parts[p][g][i % WIDTH];
        mixed[((size_t)(kv_head * SHARING + g) * chunks + chunk) * WIDTH + i % WIDTH] = sum;
    }
}
"""

# A block for each query head, a thread for each of its numbers. Chunks have different largest scores; what each holds
# is brought to the largest of all (the online softmax) and divided by the sum of all shares.
MERGE = r"""
extern "C" __global__ void merge(
    const float* largest, const float* totals, const float* mixed, int past, const int* counter, int window,
    int chunks, float* out)
{
    const int head = blockIdx.x, width = blockDim.x, i = threadIdx.x;
    const int length = (counter == nullptr ? past : *counter) + 1;
    const int begin = window == 0 ? 0 : max(length - window, 0) / CHUNK, end = (length - 1) / CHUNK + 1;
    float most = -1e38f;
    for (int chunk = begin; chunk < end; chunk++)
        most = fmaxf(most, largest[head * chunks + chunk]);
    float sum = 0.0f, total = 0.0f;
    for (int chunk = begin; chunk < end; chunk++) {
        const float factor = expf(largest[head * chunks + chunk] - most);
        total += factor * totals[head * chunks + chunk];
        sum += factor * mixed[((size_t)head * chunks + chunk) * width + i];
    }
    out[head * width + i] = sum / fmaxf(total, 1.0f);  // at least 1, or 0 where nothing is visible
}
"""

# One thread.
ADVANCE = r"""
extern "C" __global__ void advance(int* past) { *past += 1; }
"""

SOURCES = {
    "embed": EMBED,
    "matvec": MATVEC,
    "swiglu": SWIGLU,
    "recall": RECALL,
    "rms_norm": RMS_NORM,
    "rope_and_append": ROPE_AND_APPEND,
    "attend": ATTEND,
    "merge": MERGE,
    "advance": ADVANCE,
}


TYPES = {"float16": "__half", "float32": "float", "int8": "signed char", "uint8": "unsigned char"}


@functools.cache
def compiled(source: str, name: str, options: tuple[str, ...]) -> Any:
    """The kernel of that name. CuPy compiles it at its first launch, and finds it in its cache the next time."""
    import cupy  # here, because most machines have none

    return cupy.RawKernel(source, name, options=options)


def launch(
    name: str, row: str, options: tuple[str, ...], blocks: tuple[int, ...], threads: int, arguments: tuple[Any, ...]
) -> None:
    """Put a kernel on the current stream. It runs later; nobody waits for it here.

    row : how a weight's row is read, for kernels that do
    options : what the text leaves open: types and sizes
    arguments : arrays of the device, None for a null pointer; Python numbers become int and float of 32 bits
    """
    kernel = compiled(COMMON + row + SOURCES[name], name, options)
    kernel(blocks, (threads,), tuple(NUMBERS[type(x)](x) if type(x) in NUMBERS else x for x in arguments))


NUMBERS: dict[type, Any] = {int: np.int32, float: np.float32}


def checked(array: Array, size: int, *dtypes: str) -> Array:
    """The array, if a kernel may be given its address: it sees neither dtype nor shape nor strides, and reads fours."""
    dtypes = dtypes or ("float32",)
    aligned = getattr(array.data, "ptr", 0) % 16 == 0
    if str(array.dtype) not in dtypes or array.size != size or not array.flags.c_contiguous or not aligned:
        expected = f"{size} numbers of {' or '.join(dtypes)} in one piece, from a multiple of 16 bytes on"
        raise TypeError(f"kernel: expected {expected}, got {array.dtype} {array.shape}, strides {array.strides}")
    return array


class Storage(NamedTuple):
    """A weight as the kernels take it."""

    row: str
    options: tuple[str, ...]
    arrays: tuple[Array, Array | None, Array | None]  # codes, scale, minimum


def storage(weight: Array | RowGroups) -> Storage:
    """How a weight is read."""
    if not isinstance(weight, RowGroups):
        height, width = weight.shape
        checked(weight, height * width, "float16", "float32")
        return Storage(PLAIN_ROW, (f"-DNUMBER={TYPES[str(weight.dtype)]}", "-DSCALE=float"), (weight, None, None))
    number = TYPES[str(checked(weight.codes, weight.codes.size, "int8", "uint8").dtype)]
    options = (
        f"-DNUMBER={number}",
        f"-DFOUR={'char4' if number == 'signed char' else 'uchar4'}",
        f"-DSCALE={'float' if weight.scale.dtype == np.float32 else 'unsigned short'}",
        f"-DBITS={weight.bits}",
        f"-DGROUP={weight.group}",
        f"-DOFFSET={float(weight.offset)}f",
    )
    return Storage(GROUPS_ROW, options, (weight.codes, weight.scale, weight.minimum))


def embed(ids: Int[Array, "1"], weight: Array | RowGroups, out: Float[Array, " D"]) -> None:
    """out = W[id]"""
    width, kept = weight.shape[1], storage(weight)
    arguments = (*kept.arrays, checked(ids, 1, "int64"), checked(out, width), width)
    launch("embed", kept.row, kept.options, (-(-width // 256),), 256, arguments)


def matvec(
    x: Float[Array, " D"],
    weight: Array | RowGroups,
    bias: Float[Array, " F"] | None,
    residual: Float[Array, " F"] | None,
    out: Float[Array, " F"],
) -> None:
    """out = W x + bias + residual"""
    (height, width), kept = weight.shape, storage(weight)
    added = (None if y is None else checked(y, height) for y in (bias, residual))
    arguments = (*kept.arrays, checked(x, width), *added, checked(out, height), height, width)
    launch("matvec", kept.row, kept.options, (-(-height // ROWS),), 32 * ROWS, arguments)


def swiglu(
    x: Float[Array, " D"], weight: Array | RowGroups, bias: Float[Array, " F2"] | None, out: Float[Array, " F"]
) -> None:
    """out = silu(gate) · up, where W x + bias is gate and up, one below the other."""
    height, width, kept = weight.shape[0] // 2, weight.shape[1], storage(weight)
    added = None if bias is None else checked(bias, 2 * height)
    arguments = (*kept.arrays, checked(x, width), added, checked(out, height), height, width)
    launch("swiglu", kept.row, kept.options, (-(-height // ROWS),), 32 * ROWS, arguments)


def recall(
    x: Float[Array, " D"],
    weight: Array | RowGroups,
    known: Float[Array, " D"],
    product: Float[Array, " F"],
    out: Float[Array, " F"],
) -> None:
    """out = W x, which is `product` if x is `known`, and computed if not."""
    (height, width), kept = weight.shape, storage(weight)
    vectors = checked(x, width), checked(known, width), checked(product, height), checked(out, height)
    arguments = (*kept.arrays, *vectors, height, width)
    launch("recall", kept.row, kept.options, (-(-height // RECALL_ROWS),), RECALL_ROWS, arguments)


def rms_norm(x: Float[Array, " D"], weight: Float[Array, " D"], eps: float, out: Float[Array, " D"]) -> None:
    """out = x / sqrt(mean(x²) + eps) · weight"""
    width = x.shape[0]
    threads = min(NORM_THREADS, -(-width // 32) * 32)
    launch(
        "rms_norm", "", (), (1,), threads, (checked(x, width), checked(weight, width), eps, checked(out, width), width)
    )


def host_and_device(past: int | Array) -> tuple[int, Array | None]:
    """`past` as two arguments: a number, and an address that is null where the number counts."""
    return (past, None) if isinstance(past, int) else (0, checked(past, 1, "int32"))


def rope_and_append(
    qkv: Float[Array, " QKV"],
    cos: Float[Array, "rows R"],
    sin: Float[Array, "rows R"],
    past: int | Int[Array, "1"],
    keys: Float[Array, "K C H"],
    values: Float[Array, "K C H"],
    out: Float[Array, " NH"],
) -> None:
    """Rotate queries and keys; keys and values go to slot `past` of the cache, the queries to out."""
    kv_heads, capacity, width = keys.shape
    heads, (rows, pairs) = out.shape[0] // width, cos.shape
    vectors = checked(qkv, (heads + 2 * kv_heads) * width), checked(cos, rows * pairs), checked(sin, rows * pairs)
    cache = checked(keys, keys.size, "float16", "float32"), checked(values, keys.size, str(keys.dtype))
    sizes = heads, kv_heads, pairs, capacity
    arguments = (*vectors, rows, *host_and_device(past), *cache, checked(out, heads * width), *sizes)
    launch("rope_and_append", "", cache_type(keys), (heads + 2 * kv_heads,), width, arguments)


def cache_type(keys: Array) -> tuple[str, ...]:
    """In which width the cache is kept."""
    return (f"-DCACHE={TYPES[str(keys.dtype)]}",)


class Work(NamedTuple):
    """What `attend` leaves for `merge`: for each query head and chunk of the cache, its softmax by itself."""

    largest: Float[Array, "N chunks"]
    totals: Float[Array, "N chunks"]
    mixed: Float[Array, "N chunks H"]


def attention(
    q: Float[Array, " NH"],
    keys: Float[Array, "K C H"],
    values: Float[Array, "K C H"],
    past: int | Int[Array, "1"],
    window: int | None,
    visible: Bool[Array, " S"] | None,
    work: Work,
    out: Float[Array, " NH"],
) -> None:
    """The new token attends to the last `window` of the cached tokens and itself, of which it sees only `visible`."""
    kv_heads, capacity, width = keys.shape
    heads, chunks = work.largest.shape
    sizes = {"WIDTH": width, "SHARING": heads // kv_heads, "PARTS": ATTEND_THREADS // width, "CHUNK": CHUNK}
    options = (*cache_type(keys), *(f"-D{name}={size}" for name, size in sizes.items()))
    cache = checked(keys, keys.size, "float16", "float32"), checked(values, keys.size, str(keys.dtype))
    seen = None if visible is None else checked(visible, visible.size, "bool")
    when = (*host_and_device(past), window or 0)
    attend = (checked(q, heads * width), *cache, seen, *when, capacity, *work)
    launch("attend", "", options, (kv_heads, chunks), ATTEND_THREADS, attend)
    merge = (*work, *when, chunks, checked(out, heads * width))
    launch("merge", "", (f"-DCHUNK={CHUNK}",), (heads,), width, merge)


def advance(past: Int[Array, "1"]) -> None:
    """past += 1: the step is over, the cache holds one token more."""
    launch("advance", "", (), (1,), 1, (checked(past, 1, "int32"),))


def fits(config: Config) -> bool:
    """Whether the kernels can do a model of these sizes: four dimensions of a vector are read at a time."""
    width, sharing = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    if config.hidden_size % 4 != 0 or width % 4 != 0 or width > ATTEND_THREADS:
        return False
    return 4 * sharing * (width + CHUNK + ATTEND_THREADS // width * width) <= SHARED_BYTES
