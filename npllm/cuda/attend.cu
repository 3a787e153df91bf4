// Attention of one token over one CHUNK of the keys; `merge` combines the chunks. One block per key/value head and
// chunk. A block serves all SHARING query heads of its key/value head, so grouped-query attention reads each key and
// value once. The grid covers the whole capacity of the cache, because a captured launch cannot grow with the text; a
// block without a visible key returns at once.
//
// Eight threads share a key. Next, one warp per query head turns its scores into exp(score - largest). Finally each
// thread sums the values of one dimension. The result is the chunk's unnormalized softmax: the largest score, the sum
// of the exponentials, and the values weighted by them.
extern "C" __global__ void attend(
    const float* q, const CACHE* keys, const CACHE* values, const bool* visible, int past, const int* counter,
    int window, int capacity, float* largest, float* totals, float* mixed)
{
    __shared__ __align__(16) float queries[SHARING][WIDTH];
    __shared__ float shares[SHARING][CHUNK];
    __shared__ float parts[PARTS][SHARING][WIDTH];
    const int kv_head = blockIdx.x, chunk = blockIdx.y, chunks = gridDim.y;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int length = (counter == nullptr ? past : *counter) + 1;  // with the new token
    const int first = max(chunk * CHUNK, window == 0 ? 0 : length - window);
    const int count = min(chunk * CHUNK + CHUNK, length) - first;
    if (count <= 0)
        return;
    keys += ((size_t)kv_head * capacity + first) * WIDTH;
    values += ((size_t)kv_head * capacity + first) * WIDTH;

    for (int i = threadIdx.x; i < SHARING * WIDTH; i += blockDim.x)
        queries[i / WIDTH][i % WIDTH] = q[kv_head * SHARING * WIDTH + i] / sqrtf(WIDTH);
    __syncthreads();  // queries complete

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
    __syncthreads();  // scores complete

    for (int g = warp; g < SHARING; g += blockDim.x / 32) {
        float most = -1e38f;  // above the score of a masked key: if all are masked, shares are 0 and not 1
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
    __syncthreads();  // shares complete

    const int dimension = threadIdx.x % WIDTH, part = threadIdx.x / WIDTH;
    if (part < PARTS) {  // if WIDTH does not divide blockDim.x, some threads are idle
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
    __syncthreads();  // parts complete

    for (int i = threadIdx.x; i < SHARING * WIDTH; i += blockDim.x) {
        const int g = i / WIDTH;
        float sum = 0.0f;
        for (int p = 0; p < PARTS; p++)
            sum += parts[p][g][i % WIDTH];
        mixed[((size_t)(kv_head * SHARING + g) * chunks + chunk) * WIDTH + i % WIDTH] = sum;
    }
}
