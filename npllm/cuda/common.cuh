// Prepended to every kernel: vector loads and warp reductions.
#include <cuda_fp16.h>

// Four consecutive elements in one load: 8 bytes of float16, 16 of float32. Adjacent threads read adjacent vectors, so
// the loads of a warp are coalesced.
__device__ float4 load4(const __half* from)
{
    const uint2 raw = *reinterpret_cast<const uint2*>(from);
    const __half* halves = reinterpret_cast<const __half*>(&raw);
    return make_float4(
        __half2float(halves[0]), __half2float(halves[1]), __half2float(halves[2]), __half2float(halves[3]));
}

__device__ float4 load4(const float* from) { return *reinterpret_cast<const float4*>(from); }

__device__ float dot4(float4 a, float4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }

// The sum over the 32 threads of a warp, returned to all of them: five register shuffles, no memory.
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
