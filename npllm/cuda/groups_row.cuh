// How to read a row of an 8-bit or 4-bit matrix: W = scale * (code + OFFSET) + minimum, with one scale and one optional
// minimum per GROUP elements of a row. `element` and `row_times` are those of plain_row.cuh. A group contributes scale
// * sum(code * x) + (scale * OFFSET + minimum) * sum(x) to a dot product. A thread reads 4 bytes of codes at a time.
__device__ float widen(float x) { return x; }

__device__ float widen(unsigned short bfloat16) { return __uint_as_float((unsigned)bfloat16 << 16); }

__device__ float element(const NUMBER* codes, const SCALE* scale, const SCALE* minimum, size_t row, int i, int width)
{
    const size_t group = row * (width / GROUP) + i / GROUP;
#if BITS == 8
    const float code = codes[row * width + i];
#else  // low four bits: an element of the group's first half; high four bits: one of its second half
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
