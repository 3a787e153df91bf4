// out = x / sqrt(mean(x^2) + eps) * weight. One block for the whole vector. Each thread sums the squares of its
// elements, each warp reduces them, and the warps' sums meet in shared memory. The second read of x comes from cache.
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
    squares = warp_sum(lane < blockDim.x / 32 ? of_warps[lane] : 0.0f);  // in every warp: no second barrier
    const float mean = squares / width;
    const float root = sqrtf(mean + (mean - mean + eps));  // NaN if a square overflowed, as in norm.py
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        out[i] = x[i] / root * weight[i];
}
