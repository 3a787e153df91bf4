// out = silu(gate) * up, where [gate; up] = W x + bias. As matvec, with two rows per warp: one of gate, one of up. Both
// dot products stay in registers and are never written to memory.
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
        out[row] = gate / (1.0f + expf(fminf(-gate, 88.0f))) * up;  // exp(89) overflows float32
    }
}
