// out = W[id]. One thread per element of the row.
extern "C" __global__ void embed(
    const NUMBER* codes, const SCALE* scale, const SCALE* minimum, const long long* id, float* out, int width)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < width)
        out[i] = element(codes, scale, minimum, *id, i, width);
}
