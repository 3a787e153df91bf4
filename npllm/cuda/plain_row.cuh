// How to read a row of a plain float16 or float32 matrix. `element` returns one element; `row_times` is the dot product
// of a row with a vector, computed by a warp. A plain matrix has no scales and no minimums.
__device__ float element(const NUMBER* codes, const SCALE*, const SCALE*, size_t row, int i, int width)
{
    return float(codes[row * width + i]);
}

__device__ float row_times(
    const NUMBER* codes, const SCALE*, const SCALE*, size_t row, const float* x, int width, int lane)
{
    const NUMBER* elements = codes + row * width;
    const int fours = width % 4 == 0 ? width / 4 : 0;  // only if every row is aligned to four elements
    float sum = 0.0f;
    #pragma unroll 4
    for (int i = lane; i < fours; i += 32)
        sum += dot4(load4(elements + 4 * i), load4(x + 4 * i));
    for (int i = 4 * fours + lane; i < width; i += 32)
        sum += float(elements[i]) * x[i];
    return warp_sum(sum);
}
