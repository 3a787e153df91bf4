// Combines the chunks of `attend` into the output of attention. One block per query head, one thread per dimension. The
// chunks have different largest scores; each is rescaled to the largest of all (online softmax), and the sum is divided
// by the total.
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
    out[head * width + i] = sum / fmaxf(total, 1.0f);  // total is at least 1, or 0 if every key is masked
}
