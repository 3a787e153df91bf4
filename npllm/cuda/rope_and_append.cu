// Rotates queries and keys, and writes the new key and value into the KV cache. One block per head of the queries, keys
// and values; one thread per element. Each thread computes its own half of a rotated pair. Keys and values are cast to
// the cache's dtype.
extern "C" __global__ void rope_and_append(
    const float* qkv, const float* cos, const float* sin, int table_rows, int past, const int* counter,
    CACHE* keys, CACHE* values, float* queries, int heads, int kv_heads, int pairs, int capacity)
{
    const int head = blockIdx.x, width = blockDim.x, i = threadIdx.x;
    const int slot = counter == nullptr ? past : *counter;
    const float* x = qkv + head * width;
    float y = x[i];
    if (head < heads + kv_heads && i < 2 * pairs) {  // not the values; with partial rotary, not the last elements
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
