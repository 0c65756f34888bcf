// Layers with a state, one token of each of a few sequences: the recurrence of linear attention, and a short convolution.
//
// This is the header of the custom kernels `recur` and `convolve`; their bodies are recur_body.cu and convolve_body.cu, which
// list inputs and constants.
//
// A state S has a row for each value of a key. A block takes COLUMNS columns of a head's state, whose rows are shared out
// among GROUPS groups of threads: each reads its rows twice, first for what is looked up in them, then to change them.

namespace rillm {

enum Rule { CONSTANT = 0, SSD = 1, DELTA = 2, WKV7 = 3 };

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ __forceinline__ float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

template <int RULE, int HEADS, int KEY_HEADS, int N, int M, int DECAYS, int GROUPS, int COLUMNS>
struct Recur {
  static constexpr int EACH = (N + GROUPS - 1) / GROUPS;
  static constexpr float WKV7_RATE = 0.60653066f;

  // The sum over groups of a number for each column.
  static __device__ float over_groups(float (&parts)[GROUPS][COLUMNS], float own, int group, int column) {
    __syncthreads();
    parts[group][column] = own;
    __syncthreads();
    float sum = 0.0f;
    for (int g = 0; g < GROUPS; ++g) sum += parts[g][column];
    return sum;
  }

  // One sequence and head; pointers are those of sequence and head already but for `p1` .. `p4`, whose meaning is the rule's.
  template <typename T, typename A, typename B, typename C, typename D>
  static __device__ void run(
      const float* states, const T* qs, const T* ks, const T* vs, const A* p1, const B* p2, const C* p3, const D* p4,
      float least, float most, T* out, float* states_out) {
    __shared__ float q[N], k[N], decay[N], lookup[N], add[N], parts[GROUPS][COLUMNS];
    const int head = blockIdx.x % HEADS, sequence = blockIdx.x / HEADS, key_head = head / (HEADS / KEY_HEADS);
    const int at = sequence * HEADS + head, column = threadIdx.x % COLUMNS, group = threadIdx.x / COLUMNS;
    const int m = blockIdx.y * COLUMNS + column;
    const bool inside = m < M;
    const float* state = states + size_t(at) * N * M;
    float* state_out = states_out + size_t(at) * N * M;

    // Factors of the whole head.
    float w = 1.0f, scale = 1.0f, skip = 0.0f;
    if constexpr (RULE == CONSTANT) w = float(p1[head]);
    if constexpr (RULE == SSD) {
      scale = fminf(fmaxf(softplus(float(p1[at]) + float(p2[head])), least), most);
      w = expf(scale * float(p3[head]));
      skip = float(p4[head]);
    }
    if constexpr (RULE == DELTA) {
      scale = sigmoid(float(p4[at]));
      if constexpr (DECAYS == 1) w = expf(float(p3[head]) * softplus(float(p1[at]) + float(p2[head])));
    }
    // And of each row.
    for (int n = threadIdx.x; n < N; n += GROUPS * COLUMNS) {
      const int key = (sequence * KEY_HEADS + key_head) * N + n, row = at * N + n;
      q[n] = float(qs[key]);
      k[n] = float(ks[key]);
      decay[n] = w;
      if constexpr (RULE == DELTA) {
        if constexpr (DECAYS > 1) {
          decay[n] = expf(float(p3[head]) * softplus(float(p1[row]) + float(p2[head * N + n])));
        }
        lookup[n] = k[n] * scale * decay[n];
        add[n] = -k[n];
      }
      if constexpr (RULE == WKV7) {
        decay[n] = expf(-WKV7_RATE * sigmoid(float(p1[row])));
        lookup[n] = float(p2[row]);
        add[n] = float(p3[row]);
      }
    }
    __syncthreads();

    const int first = group * EACH, end = min(first + EACH, N);
    float found = 0.0f;
    if constexpr (RULE == DELTA || RULE == WKV7) {
      if (inside) {
#pragma unroll 8
        for (int n = first; n < end; ++n) found += lookup[n] * state[size_t(n) * M + m];
      }
      found = over_groups(parts, found, group, column);
    }
    const float value = inside ? float(vs[size_t(at) * M + m]) : 0.0f;
    float y = 0.0f;
    if (inside) {
#pragma unroll 8
      for (int n = first; n < end; ++n) {
        float s = decay[n] * state[size_t(n) * M + m] + k[n] * scale * value;
        if constexpr (RULE == DELTA || RULE == WKV7) s += add[n] * found;
        state_out[size_t(n) * M + m] = s;
        y += q[n] * s;
      }
    }
    y = over_groups(parts, y, group, column);
    if (inside && group == 0) out[size_t(at) * M + m] = T(y + skip * value);
  }
};

// A channel of a sequence for each thread. `kept`: [sequences, TAPS - 1, CHANNELS].
template <int CHANNELS, int TAPS, bool SILU>
struct Convolve {
  template <typename T, typename K, typename B>
  static __device__ void run(const T* x, const float* kept, const K* kernel, const B* bias, T* out, float* kept_out) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, sequence = blockIdx.y;
    if (c >= CHANNELS) return;
    float sum = 0.0f;
    for (int tap = 0; tap + 1 < TAPS; ++tap) {
      const float seen = kept[(size_t(sequence) * (TAPS - 1) + tap) * CHANNELS + c];
      sum += seen * float(kernel[size_t(tap) * CHANNELS + c]);
      if (tap > 0) kept_out[(size_t(sequence) * (TAPS - 1) + tap - 1) * CHANNELS + c] = seen;
    }
    const float latest = float(x[size_t(sequence) * CHANNELS + c]);
    kept_out[(size_t(sequence) * (TAPS - 1) + TAPS - 2) * CHANNELS + c] = latest;
    sum += latest * float(kernel[size_t(TAPS - 1) * CHANNELS + c]);
    if (bias != nullptr) sum += float(bias[c]);
    out[size_t(sequence) * CHANNELS + c] = T(SILU ? sum * sigmoid(sum) : sum);
  }
};

}  // namespace rillm
