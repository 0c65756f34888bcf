// Attention of a token of each of a few sequences to all that came before it there, with the rotation of its query and key
// and the writes of its key and value on the way; no prompts, no windows.
//
// This is the header of the custom kernel `attend`; its body is attend_body.cu, which lists inputs and constants.
//
// A block takes one query head of a sequence, or an equal share of the positions before it (SPLIT), whose sums `merge` adds
// up. Lanes form groups of HEAD / 8: a lane has 8 values of a key or value, a group one position at a time, AHEAD positions
// are loaded before the first is used. Each group has a softmax of its own; they are merged at the end (online softmax:
// Milakov & Gimelshein 2018).

namespace rillm {

template <typename T>
struct Pair;

template <>
struct Pair<__nv_bfloat16> {
  using Two = __nv_bfloat162;
  static __device__ float2 wide(Two x) { return __bfloat1622float2(x); }
  static __device__ float round(float x) { return __bfloat162float(__float2bfloat16(x)); }
};

template <>
struct Pair<__half> {
  using Two = __half2;
  static __device__ float2 wide(Two x) { return __half22float2(x); }
  static __device__ float round(float x) { return __half2float(__float2half(x)); }
};

template <typename T, int HEAD, int HEADS, int KV_HEADS, int PAIRS, bool HALVES, int WARPS, bool SPLIT>
struct Attend {
  static constexpr int LANES = HEAD / 8;
  static constexpr int PER_WARP = 32 / LANES;
  static constexpr int GROUPS = WARPS * PER_WARP;
  static constexpr int AHEAD = 4;
  static constexpr int KV = KV_HEADS * HEAD;

  static __device__ void widen(const uint4& packed, float (&x)[8]) {
    const typename Pair<T>::Two* pairs = reinterpret_cast<const typename Pair<T>::Two*>(&packed);
    for (int i = 0; i < 4; ++i) {
      float2 both = Pair<T>::wide(pairs[i]);
      x[2 * i] = both.x;
      x[2 * i + 1] = both.y;
    }
  }

  // Value `d` of the head at `x`, turned to `position` and rounded as an operation of its own would.
  static __device__ float turned(const T* x, int d, const float* inv_freq, int position) {
    if (d >= 2 * PAIRS) return float(x[d]);
    const int pair = HALVES ? d % PAIRS : d / 2;
    const bool second = HALVES ? d >= PAIRS : d % 2 == 1;
    const int other = HALVES ? (second ? d - PAIRS : d + PAIRS) : d ^ 1;
    float sine, cosine;
    sincosf(float(position) * inv_freq[pair], &sine, &cosine);
    return Pair<T>::round(float(x[d]) * cosine + (second ? sine : -sine) * float(x[other]));
  }

  struct Softmax {
    float most = -INFINITY, total = 0.0f, sum[8] = {};

    __device__ void add(float score, const float (&value)[8]) {
      const float next = fmaxf(most, score);
      const float keep = exp2f(most - next), weight = exp2f(score - next);
      total = total * keep + weight;
      for (int i = 0; i < 8; ++i) sum[i] = sum[i] * keep + weight * value[i];
      most = next;
    }
  };

  // The same in all lanes of a group.
  static __device__ float dot(const float (&q)[8], const float (&k)[8]) {
    float sum = 0.0f;
    for (int i = 0; i < 8; ++i) sum += q[i] * k[i];
    for (int step = LANES / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    return sum;
  }

  // `Out` is T, or float for parts. `all_qkv`, `out` and `all_rows` are those of all sequences.
  template <typename Out>
  static __device__ void run(
      const T* all_qkv, T* keys, T* values, const float* inv_freq, int length, float scale, Out* out, T* all_rows) {
    __shared__ float most[GROUPS], total[GROUPS], sums[GROUPS][HEAD];
    const int sequence = blockIdx.x / HEADS, head = blockIdx.x % HEADS, kv_head = head / (HEADS / KV_HEADS);
    const T* qkv = all_qkv + sequence * (HEADS * HEAD + 2 * KV);
    T* rows = all_rows + sequence * 2 * KV;
    const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES, first = lane * 8;
    const int share = SPLIT ? (length + gridDim.y - 1) / gridDim.y : length;
    const int begin = SPLIT ? blockIdx.y * share : 0, end = SPLIT ? min(begin + share, length) : length;

    float q[8];
    for (int i = 0; i < 8; ++i) {
      q[i] = turned(qkv + head * HEAD, first + i, inv_freq, length) * scale * 1.4426950408889634f;
    }
    Softmax softmax;
    const T* k0 = keys + kv_head * HEAD + first;
    const T* v0 = values + kv_head * HEAD + first;
    // All groups of a warp go round equally often: they meet in shuffles.
    const int warp_first = threadIdx.x / 32 * PER_WARP;
    for (int base = begin; base + warp_first < end; base += GROUPS * AHEAD) {
      uint4 k[AHEAD], v[AHEAD];
      for (int i = 0; i < AHEAD; ++i) {
        const int position = base + i * GROUPS + group;
        if (position < end) {
          k[i] = *reinterpret_cast<const uint4*>(k0 + size_t(position) * KV);
          v[i] = *reinterpret_cast<const uint4*>(v0 + size_t(position) * KV);
        }
      }
      for (int i = 0; i < AHEAD; ++i) {
        const int position = base + i * GROUPS + group;
        float key[8], value[8];
        widen(k[i], key);
        widen(v[i], value);
        const float score = dot(q, key);
        if (position < end) softmax.add(score, value);
      }
    }
    if (warp_first == 0 && blockIdx.y == 0) {
      // The token's own key and value, which are not in the buffers yet.
      float key[8], value[8];
      const T* own = qkv + HEADS * HEAD + kv_head * HEAD;
      for (int i = 0; i < 8; ++i) {
        key[i] = turned(own, first + i, inv_freq, length);
        value[i] = float(own[KV + first + i]);
      }
      const float score = dot(q, key);
      if (group == 0) softmax.add(score, value);
      // One of the query heads that share them writes them.
      if (group == 0 && head % (HEADS / KV_HEADS) == 0) {
        const int at = kv_head * HEAD + first;
        for (int i = 0; i < 8; ++i) {
          keys[size_t(length) * KV + at + i] = rows[at + i] = T(key[i]);
          values[size_t(length) * KV + at + i] = rows[KV + at + i] = T(value[i]);
        }
      }
    }
    if (lane == 0) {
      most[group] = softmax.most;
      total[group] = softmax.total;
    }
    for (int i = 0; i < 8; ++i) sums[group][first + i] = softmax.sum[i];
    __syncthreads();
    for (int d = threadIdx.x; d < HEAD; d += blockDim.x) {
      float highest = -INFINITY;
      for (int g = 0; g < GROUPS; ++g) highest = fmaxf(highest, most[g]);
      float sum = 0.0f, all = 0.0f;
      for (int g = 0; g < GROUPS; ++g) {
        // A share may have no positions.
        const float weight = most[g] == -INFINITY ? 0.0f : exp2f(most[g] - highest);
        all += weight * total[g];
        sum += weight * sums[g][d];
      }
      if constexpr (SPLIT) {
        Out* part = out + (size_t(blockIdx.y) * gridDim.x + blockIdx.x) * (HEAD + 2);
        part[d] = sum;
        if (d == 0) {
          part[HEAD] = highest;
          part[HEAD + 1] = all;
        }
      } else {
        out[blockIdx.x * HEAD + d] = Out(sum / all);
      }
    }
  }
};

// Parts of a head: HEAD sums, the highest score, the total of weights.
template <typename T, int HEAD, int HEADS, int SPLITS>
__device__ void merge(const float* parts, T* out) {
  const float* part = parts + blockIdx.x * (HEAD + 2);
  constexpr int NEXT = HEADS * (HEAD + 2);
  float highest = -INFINITY;
  for (int i = 0; i < SPLITS; ++i) highest = fmaxf(highest, part[i * NEXT + HEAD]);
  float sum = 0.0f, all = 0.0f;
  for (int i = 0; i < SPLITS; ++i) {
    const float weight = exp2f(part[i * NEXT + HEAD] - highest);
    all += weight * part[i * NEXT + HEAD + 1];
    sum += weight * part[i * NEXT + threadIdx.x];
  }
  out[blockIdx.x * HEAD + threadIdx.x] = T(sum / all);
}

}  // namespace rillm
