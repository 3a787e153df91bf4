// out = W x + bias + residual. One warp per row of W, four rows per block. W is read from memory once. Every warp reads
// x again, but x is small (D or F elements) and stays in cache.
extern "C" __global__ void matvec(
    const NUMBER* codes, const SCALE* scale, const SCALE* minimum, const float* x, const float* bias,
    const float* residual, float* out, int height, int width)
{
    const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= height)  // the whole warp returns, so no shuffle lacks a thread
        return;
    float y = row_times(codes, scale, minimum, row, x, width, lane);
    if (lane == 0) {
        if (bias != nullptr)
            y += bias[row];
        out[row] = residual == nullptr ? y : residual[row] + y;
    }
}
