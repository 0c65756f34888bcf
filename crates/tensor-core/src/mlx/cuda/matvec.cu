// Products of 1 to 8 rows with MLX's affine codes or plain 16-bit weights on tensor cores; no products of prompts.
//
// This is the header of the custom kernel `matvec`; its body is matvec_body.cu, which lists inputs and constants.
// Requires compute capability 8.0 (mma.m16n8k16), written for the memory system of 9.0.
//
// How it works. A matrix-vector product only moves weights, so everything here serves bytes in flight:
// * A warp takes 16 outputs and loads 16 bytes of codes per lane for outputs `g` and `g + 8` (g = lane / 4), STEPS
//   times, before it uses any. Each step reloads the registers it has just used: loads stay in flight all the time.
//   The first are issued before the input is normalised or activated, which hides most of that work.
// * The input comes first of all and through the copy engine: every block reads the same few lines, and a read that
//   queues up behind all blocks' weights comes thousands of cycles late.
// * Codes become numbers with one AND-OR for two of them: q in the low bits of a 16-bit float's mantissa is the exact
//   number OFFSET + q. These go into the tensor core as they are; sum(x * q) = sum(x * (OFFSET + q)) - OFFSET * sum(x)
//   is put right per group in float32, together with scale and bias: y += scale * sum(x * q) + bias * sum(x).
// * The tensor core multiplies 16 outputs with 8 columns. A column is a pair (group, input row): it holds the input
//   in the positions of that group and zeros elsewhere, so that one product keeps 8 groups apart.
// * The order of positions within a product is free: the input is put into shared memory in the order in which codes
//   come out of their words.

namespace rillm {

using u32 = unsigned int;

struct Inputs {
  const void* x;
  const void* w;
  const void* scales;
  const void* biases;
  const void* gain;
  float eps;
  const void* bias;
  const void* residual;
  const u32* experts;
  void* out;
};

enum Prologue { PLAIN = 0, RMS_NORM = 1, SILU_GATE = 2, GELU_GATE = 3 };
enum Choice { NO_EXPERTS = 0, SHARED_INPUT = 1, INPUT_PER_EXPERT = 2 };

// What differs between the 16-bit floats: conversion of pairs, the numbers `OFFSET + q`, the tensor core instruction.
template <typename T>
struct Half;

template <>
struct Half<__nv_bfloat16> {
  // Half a byte at the bottom of the mantissa: 128 + q, and 2048 + 16 q for the upper one.
  static constexpr int NIBBLE_AT = 0;
  static constexpr u32 LOW = 0x43004300u, HIGH = 0x45004500u;
  static constexpr float OFFSET_4 = 128.0f, OFFSET_8 = 128.0f + 2048.0f;
  static constexpr bool BYTE_FITS = false;

  static __device__ __forceinline__ float2 split(u32 pair) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
  }
  static __device__ __forceinline__ u32 pair(float low, float high) {
    __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<u32*>(&both);
  }
  static __device__ __forceinline__ void
  mma(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
};

template <>
struct Half<__half> {
  // 64 + q with half a byte above 4 bits of the mantissa; 1024 + q with a byte at its bottom.
  static constexpr int NIBBLE_AT = 4;
  static constexpr u32 LOW = 0x54005400u, BYTE = 0x64006400u;
  static constexpr float OFFSET_4 = 64.0f, OFFSET_8 = 1024.0f;
  static constexpr bool BYTE_FITS = true;

  static __device__ __forceinline__ float2 split(u32 pair) {
    return __half22float2(*reinterpret_cast<const __half2*>(&pair));
  }
  static __device__ __forceinline__ u32 pair(float low, float high) {
    __half2 both = __floats2half2_rn(low, high);
    return *reinterpret_cast<u32*>(&both);
  }
  static __device__ __forceinline__ void
  mma(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
};

// 16 bytes of weights, which nobody reads again: not kept in L1. Unchanged unless `wanted`.
__device__ __forceinline__ void stream(uint4& to, const void* from, bool wanted) {
  asm volatile(
      "{ .reg .pred p; setp.ne.u32 p, %5, 0;\n"
      "@p ld.global.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4]; }"
      : "+r"(to.x), "+r"(to.y), "+r"(to.z), "+r"(to.w)
      : "l"(from), "r"(u32(wanted)));
}

// Two neighbours of scales or biases. Unchanged unless `wanted`.
__device__ __forceinline__ void fetch_pair(u32& to, const void* from, bool wanted) {
  asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0;\n@p ld.global.u32 %0, [%1]; }"
               : "+r"(to)
               : "l"(from), "r"(u32(wanted)));
}

// One of scales or biases, into the low half. Unchanged unless `wanted`.
__device__ __forceinline__ void fetch_one(u32& to, const void* from, bool wanted) {
  asm volatile(
      "{ .reg .pred p; .reg .u16 h; setp.ne.u32 p, %2, 0; cvt.u16.u32 h, %0;\n"
      "@p ld.global.u16 h, [%1]; cvt.u32.u16 %0, h; }"
      : "+r"(to)
      : "l"(from), "r"(u32(wanted)));
}

__device__ __forceinline__ uint4 read(const void* from) {
  return __ldg(static_cast<const uint4*>(from));
}

__device__ __forceinline__ u32 address(const void* shared) {
  return u32(__cvta_generic_to_shared(shared));
}

// The copy engine of compute capability 9: one thread asks for a whole array, a barrier in shared memory counts bytes.
__device__ __forceinline__ void expect(void* barrier, u32 bytes) {
  asm volatile("mbarrier.init.shared.b64 [%0], 1;\nfence.proxy.async.shared::cta;\n"
               "mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(address(barrier)), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void copy_all(void* to, const void* from, u32 bytes, void* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               :
               : "r"(address(to)), "l"(from), "r"(bytes), "r"(address(barrier))
               : "memory");
}
__device__ __forceinline__ void wait_for_all(void* barrier) {
  asm volatile("{ .reg .pred p;\nagain: mbarrier.try_wait.parity.shared.b64 p, [%0], 0;\n@!p bra again; }"
               :
               : "r"(address(barrier))
               : "memory");
}

// Without it: 16 bytes of a thread, which waits for its own.
__device__ __forceinline__ void copy(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address(to)), "l"(from) : "memory");
}
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// Keeps loads where they are written: the assembler moves read-only loads (ld.global.nc), and others within a block of
// instructions, to where registers are scarce least, which is after the work that they are meant to overlap.
__device__ __forceinline__ void keep_order() {
  __syncwarp();
}

template <
    typename T, int BITS, int GROUP, int IN, int OUT, int ROWS, int PROLOGUE, bool BIAS, bool RESIDUAL, int EXPERTS,
    int STEPS, int WK, int WR>
struct Matvec {
  using H = Half<T>;
  static constexpr bool CODED = BITS < 16;
  static constexpr bool GATED = PROLOGUE == SILU_GATE || PROLOGUE == GELU_GATE;

  // Positions of the input: in a lane's 16 bytes, in a step of 4 lanes, in a window of STEPS steps, in all windows.
  static constexpr int LANE = 128 / BITS;
  static constexpr int STEP = 4 * LANE;
  static constexpr int WINDOW = STEPS * STEP;
  static constexpr int WINDOWS = (IN + WINDOW - 1) / WINDOW;
  static constexpr int COLUMNS = WINDOWS * WINDOW;
  static constexpr bool RAGGED = COLUMNS != IN;
  static constexpr int ROW_BYTES = IN / 8 * BITS;

  // Rows of the input, padded to a power of two: column n of products belongs to row n % ROWS2, place n / ROWS2.
  static constexpr int ROWS2 = ROWS <= 1 ? 1 : ROWS <= 2 ? 2 : ROWS <= 4 ? 4 : 8;
  // Groups of a window; slot s has place s / PRODUCTS of product s % PRODUCTS.
  static constexpr int SLOTS = CODED ? WINDOW / GROUP : 8 / ROWS2;
  static constexpr int PRODUCTS = CODED ? ROWS2 : 1;
  static constexpr int GROUPS = CODED ? IN / GROUP : 1;
  static constexpr int ALL_GROUPS = CODED ? COLUMNS / GROUP : 1;
  // Slots whose sums a thread holds: 2 as both of its columns if there is one row, else one for each product.
  static constexpr int HELD = ROWS2 == 1 ? 2 : ROWS2;
  static constexpr bool PAIRS = GROUPS % 2 == 0 && SLOTS % 2 == 0;
  // Independent chains of products, so that one need not wait for the one before.
  static constexpr int CHAINS = PRODUCTS == 1 ? 4 : PRODUCTS == 2 ? 2 : 1;
  static constexpr float OFFSET = BITS == 4 ? H::OFFSET_4 : H::OFFSET_8;

  static constexpr int WARPS = WK * WR;
  static constexpr int THREADS = 32 * WARPS;
  static constexpr int TILES = (OUT + 16 * WR - 1) / (16 * WR);
  static constexpr int OUTPUTS = 16 * WR * ROWS;
  static constexpr int OUTPUTS_PER_THREAD = (OUTPUTS + THREADS - 1) / THREADS;

  // Shared memory: zeros, rows of the input, sums of their groups, partial sums of outputs (twice), sums of squares,
  // the copy engine's barrier, the input as it came if it is small enough (AHEAD), the gain.
  // Rows start half of all banks apart.
  static constexpr int CHUNKS = LANE / 8;
  static constexpr int ZEROS = 64 * CHUNKS;
  static constexpr int ROW_STRIDE = COLUMNS * 2 + (COLUMNS * 2 % 128 == 0 ? 64 : 0);
  static constexpr int SUMS_AT = ZEROS + ROWS * ROW_STRIDE;
  static constexpr int PARTIAL_AT = SUMS_AT + (CODED ? ROWS * ALL_GROUPS * 4 : 0);
  static constexpr int PARTIAL = WR * WK * ROWS * 16;
  static constexpr int SQUARES_AT = PARTIAL_AT + 2 * PARTIAL * 4;
  static constexpr int BARRIER_AT = (SQUARES_AT + (PROLOGUE == RMS_NORM ? WARPS * ROWS * 4 : 0) + 15) / 16 * 16;
  static constexpr int X_ROW = GATED ? 2 * IN : IN;
  static constexpr bool AHEAD = ROWS * X_ROW * 2 <= 65536;
  static constexpr int RAW_AT = BARRIER_AT + 16;
  static constexpr int GAIN_AT = RAW_AT + (AHEAD ? ROWS * X_ROW * 2 : 0);
  static constexpr int SHARED = GAIN_AT + (PROLOGUE == RMS_NORM ? IN * 2 : 0);
  // Whether the copy engine fetches the input, and how many steps of weights are asked for before it has come: enough
  // to keep memory busy, too few to keep the input waiting.
  static constexpr bool ENGINE = __CUDA_ARCH__ >= 900;
  static constexpr int FIRST_STEPS = 1;

  static_assert(BITS == 4 || BITS == 8 || BITS == 16);
  static_assert(ROWS >= 1 && ROWS <= 8);
  static_assert(IN % LANE == 0, "a row is a number of 16 bytes");
  static_assert(!CODED || (IN % GROUP == 0 && WINDOW % GROUP == 0 && SLOTS <= 8), "a window is 1 to 8 groups");
  static_assert(WK <= WINDOWS && THREADS <= 1024);

  // Slot of lane t's codes in step s of a window.
  static __device__ __forceinline__ constexpr int slot(int s, int t) {
    return CODED ? (s * STEP + t * LANE) / GROUP : s % SLOTS;
  }
  // Whether a step has codes for a product.
  static __device__ __forceinline__ constexpr bool used(int s, int product) {
    for (int t = 0; t < 4; ++t) {
      if (slot(s, t) % PRODUCTS == product) return true;
    }
    return false;
  }

  // ---- The input ----

  static constexpr int CHUNKS_PER_THREAD = (COLUMNS / 8 + THREADS - 1) / THREADS;
  static constexpr int CHUNKS_OF_ROW = COLUMNS / 8;

  // Where a chunk of 8 positions is in shared memory: lanes of a step beside each other.
  static __device__ __forceinline__ uint4* chunk_at(unsigned char* shared, int row, int chunk) {
    const int step = chunk / (4 * CHUNKS), lane = chunk / CHUNKS % 4, part = chunk % CHUNKS;
    return reinterpret_cast<uint4*>(shared + ZEROS + row * ROW_STRIDE + ((step * CHUNKS + part) * 4 + lane) * 16);
  }

  // Asks for the input and the gain before anything else: what comes back only later, behind all the weights asked for
  // before it, holds up the first product.
  static __device__ __forceinline__ void ask(unsigned char* shared, const T* x, const T* gain) {
    if constexpr (!AHEAD) return;
    if constexpr (ENGINE) {
      if (threadIdx.x == 0) {
        expect(shared + BARRIER_AT, ROWS * X_ROW * 2 + (PROLOGUE == RMS_NORM ? IN * 2 : 0));
        copy_all(shared + RAW_AT, x, ROWS * X_ROW * 2, shared + BARRIER_AT);
        if (PROLOGUE == RMS_NORM) copy_all(shared + GAIN_AT, gain, IN * 2, shared + BARRIER_AT);
      }
    } else {
      for (int i = threadIdx.x; i < ROWS * X_ROW / 8; i += THREADS) copy(shared + RAW_AT + i * 16, x + i * 8);
      if constexpr (PROLOGUE == RMS_NORM) {
        for (int i = threadIdx.x; i < IN / 8; i += THREADS) copy(shared + GAIN_AT + i * 16, gain + i * 8);
      }
    }
  }

  static __device__ __forceinline__ void arrive(unsigned char* shared) {
    if constexpr (AHEAD && !ENGINE) wait_for_copies();
    __syncthreads();
    if constexpr (AHEAD && ENGINE) wait_for_all(shared + BARRIER_AT);
  }

  // A chunk of the input, or of what belongs to the same positions: the gain, or the upper half of the gate.
  static __device__ __forceinline__ uint4 first(const unsigned char* shared, const T* x, int row, int chunk) {
    if (RAGGED && chunk >= IN / 8) return make_uint4(0, 0, 0, 0);
    const int at = (row * X_ROW + chunk * 8) * 2;
    if constexpr (AHEAD) return *reinterpret_cast<const uint4*>(shared + RAW_AT + at);
    return read(reinterpret_cast<const unsigned char*>(x) + at);
  }
  static __device__ __forceinline__ uint4
  second(const unsigned char* shared, const T* x, const T* gain, int row, int chunk) {
    if (PROLOGUE == PLAIN || (RAGGED && chunk >= IN / 8)) return make_uint4(0, 0, 0, 0);
    if constexpr (GATED) return first(shared, x, row, chunk + IN / 8);
    if constexpr (AHEAD) return *reinterpret_cast<const uint4*>(shared + GAIN_AT + chunk * 16);
    return read(gain + chunk * 8);
  }

  static __device__ __forceinline__ float square(uint4 v) {
    float sum = 0.0f;
    const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float2 p = H::split(words[i]);
      sum = fmaf(p.x, p.x, fmaf(p.y, p.y, sum));
    }
    return sum;
  }

  static __device__ __forceinline__ float activate(float gate) {
    // gelu's tanh form is gate * sigmoid(2 u), u = sqrt(2 / pi) * (gate + 0.044715 gate^3).
    float z = PROLOGUE == SILU_GATE ? gate : 1.5957691216057308f * fmaf(0.044715f * gate * gate, gate, gate);
    return __fdividef(gate, 1.0f + __expf(-z));
  }

  static __device__ __forceinline__ u32 prepare(u32 a, u32 b, float norm) {
    if constexpr (PROLOGUE == PLAIN) return a;
    float2 p = H::split(a), q = H::split(b);
    if constexpr (PROLOGUE == RMS_NORM) return H::pair(p.x * norm * q.x, p.y * norm * q.y);
    return H::pair(activate(p.x) * q.x, activate(p.y) * q.y);
  }

  // Prepares a chunk, adds up groups, and orders its positions as codes leave their words.
  // All lanes of a warp come here together; those beyond the row with zeros.
  static __device__ __forceinline__ uint4
  prepared(unsigned char* shared, int row, int chunk, uint4 a, uint4 b, float norm) {
    uint4 v = make_uint4(prepare(a.x, b.x, norm), prepare(a.y, b.y, norm), prepare(a.z, b.z, norm),
                         prepare(a.w, b.w, norm));
    if constexpr (CODED) {
      float2 p = H::split(v.x), q = H::split(v.y), r = H::split(v.z), s = H::split(v.w);
      float sum = ((p.x + p.y) + (q.x + q.y)) + ((r.x + r.y) + (s.x + s.y));
#pragma unroll
      for (int d = 1; d < GROUP / 8; d *= 2) sum += __shfl_xor_sync(~0u, sum, d);
      if (chunk * 8 % GROUP == 0 && chunk < CHUNKS_OF_ROW) {
        reinterpret_cast<float*>(shared + SUMS_AT)[row * ALL_GROUPS + chunk * 8 / GROUP] = sum;
      }
    }
    if constexpr (BITS == 4) {  // (0,4) (1,5) (2,6) (3,7)
      v = make_uint4(__byte_perm(v.x, v.z, 0x5410), __byte_perm(v.x, v.z, 0x7632),
                     __byte_perm(v.y, v.w, 0x5410), __byte_perm(v.y, v.w, 0x7632));
    } else if constexpr (BITS == 8) {  // (0,2) (1,3) (4,6) (5,7)
      v = make_uint4(__byte_perm(v.x, v.y, 0x5410), __byte_perm(v.x, v.y, 0x7632),
                     __byte_perm(v.z, v.w, 0x5410), __byte_perm(v.z, v.w, 0x7632));
    }
    return v;
  }

  // 1 / sqrt(mean of squares + eps) of each row.
  static __device__ __forceinline__ void norms(float (&norm)[ROWS], unsigned char* shared, const T* x, float eps) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float* squares = reinterpret_cast<float*>(shared + SQUARES_AT);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      float sum = 0.0f;
      for (int chunk = threadIdx.x; chunk < IN / 8; chunk += THREADS) sum += square(first(shared, x, r, chunk));
#pragma unroll
      for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
      if (lane == 0) squares[r * WARPS + warp] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      float sum = lane < WARPS ? squares[r * WARPS + lane] : 0.0f;
#pragma unroll
      for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
      norm[r] = rsqrtf(sum / IN + eps);
    }
  }

  static __device__ __forceinline__ void stage(unsigned char* shared, const T* x, const T* gain, float eps) {
    if (threadIdx.x < ZEROS / 16) reinterpret_cast<uint4*>(shared)[threadIdx.x] = make_uint4(0, 0, 0, 0);
    float norm[ROWS];
    if constexpr (PROLOGUE == RMS_NORM) norms(norm, shared, x, eps);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      for (int i = 0; i < CHUNKS_PER_THREAD; ++i) {
        const int chunk = threadIdx.x + i * THREADS;
        uint4 a = make_uint4(0, 0, 0, 0), b = a;
        if (chunk < CHUNKS_OF_ROW) {
          a = first(shared, x, r, chunk);
          b = second(shared, x, gain, r, chunk);
        }
        a = prepared(shared, r, chunk, a, b, PROLOGUE == RMS_NORM ? norm[r] : 1.0f);
        if (chunk < CHUNKS_OF_ROW) *chunk_at(shared, r, chunk) = a;
      }
    }
    __syncthreads();
  }

  // ---- The weights ----

  struct Lane {
    int g, t;        // output and quarter of a step
    int warp_k, warp_r;
    int held;        // first slot whose sums this thread holds
    __device__ __forceinline__ Lane() {
      const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
      g = lane / 4;
      t = lane % 4;
      warp_k = warp % WK;
      warp_r = warp / WK;
      held = ROWS2 == 1 ? 2 * t : ROWS2 * (2 * t / ROWS2);
    }
  };

  // What a warp has in flight for its next window: h = 0 for output g, 1 for g + 8.
  struct Window {
    uint4 codes[2][STEPS];
    u32 scales[2][HELD], biases[2][HELD];  // pairs in every second place if PAIRS
  };

  struct Where {
    const unsigned char* codes[2];
    const T* scales[2];
    const T* biases[2];
    int column;
    bool wanted;
  };

  static __device__ __forceinline__ Where
  where(const unsigned char* w, const T* scales, const T* biases, const Lane& lane, int tile, int window) {
    Where to;
    to.wanted = tile < TILES;
    to.column = window * WINDOW + lane.t * LANE;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const size_t output = min((tile * WR + lane.warp_r) * 16 + lane.g + 8 * h, OUT - 1);
      to.codes[h] = w + output * ROW_BYTES + (window * STEPS * 4 + lane.t) * 16;
      if constexpr (CODED) {
        to.scales[h] = scales + output * GROUPS + window * SLOTS + lane.held;
        to.biases[h] = biases + output * GROUPS + window * SLOTS + lane.held;
      }
    }
    return to;
  }

  static __device__ __forceinline__ void load_step(Window& to, const Where& from, int s) {
    const bool wanted = from.wanted && (!RAGGED || from.column + s * STEP < IN);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (RAGGED) to.codes[h][s] = make_uint4(0, 0, 0, 0);
      stream(to.codes[h][s], from.codes[h] + s * 64, wanted);
    }
  }

  static __device__ __forceinline__ void load_scales(Window& to, const Where& from, const Lane& lane) {
    if constexpr (CODED) {
#pragma unroll
      for (int i = 0; i < HELD; i += PAIRS ? 2 : 1) {
        const int group = from.column / WINDOW * SLOTS + lane.held + i;
        const bool wanted = from.wanted && lane.held + i < SLOTS && (!RAGGED || group < GROUPS);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          if (RAGGED) to.scales[h][i] = to.biases[h][i] = 0;
          if constexpr (PAIRS) {
            fetch_pair(to.scales[h][i], from.scales[h] + i, wanted);
            fetch_pair(to.biases[h][i], from.biases[h] + i, wanted);
          } else {
            fetch_one(to.scales[h][i], from.scales[h] + i, wanted);
            fetch_one(to.biases[h][i], from.biases[h] + i, wanted);
          }
        }
      }
    }
  }

  // ---- The products ----

  // Two numbers of the k-th halves of bytes of a word's halves, k = 0 to 3, with the exponent that makes them exact.
  template <int K>
  static __device__ __forceinline__ u32 nibbles(u32 word, u32 exponent) {
    constexpr int shift = 4 * K - H::NIBBLE_AT;
    constexpr u32 mask = 0x000f000fu << H::NIBBLE_AT;
    return ((shift >= 0 ? word >> (shift >= 0 ? shift : 0) : word << (shift < 0 ? -shift : 0)) & mask) | exponent;
  }

  // Words of codes of outputs g (a) and g + 8 (b) with the input's pairs for them.
  static __device__ __forceinline__ void product_4(float (&even)[4], float (&odd)[4], u32 a, u32 b, uint4 x) {
    H::mma(even, nibbles<0>(a, H::LOW), nibbles<0>(b, H::LOW), nibbles<1>(a, H::LOW), nibbles<1>(b, H::LOW), x.x, x.y);
    H::mma(odd, nibbles<2>(a, H::LOW), nibbles<2>(b, H::LOW), nibbles<3>(a, H::LOW), nibbles<3>(b, H::LOW), x.z, x.w);
  }
  static __device__ __forceinline__ void product_8(float (&even)[4], float (&odd)[4], u32 a, u32 b, u32 x0, u32 x1) {
    if constexpr (H::BYTE_FITS) {
      constexpr u32 M = 0x00ff00ffu;
      H::mma(even, (a & M) | H::BYTE, (b & M) | H::BYTE, (a >> 8 & M) | H::BYTE, (b >> 8 & M) | H::BYTE, x0, x1);
    } else {
      H::mma(even, nibbles<0>(a, H::LOW), nibbles<0>(b, H::LOW), nibbles<2>(a, H::LOW), nibbles<2>(b, H::LOW), x0, x1);
      H::mma(odd, nibbles<1>(a, H::HIGH), nibbles<1>(b, H::HIGH), nibbles<3>(a, H::HIGH), nibbles<3>(b, H::HIGH), x0,
             x1);
    }
  }
  static __device__ __forceinline__ void
  product(float (&even)[4], float (&odd)[4], const uint4& a, const uint4& b, const unsigned char* x) {
    uint4 v[CHUNKS];
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) v[c] = *reinterpret_cast<const uint4*>(x + c * 64);
    if constexpr (BITS == 4) {
      product_4(even, odd, a.x, b.x, v[0]);
      product_4(even, odd, a.y, b.y, v[1]);
      product_4(even, odd, a.z, b.z, v[2]);
      product_4(even, odd, a.w, b.w, v[3]);
    } else if constexpr (BITS == 8) {
      product_8(even, odd, a.x, b.x, v[0].x, v[0].y);
      product_8(odd, even, a.y, b.y, v[0].z, v[0].w);
      product_8(even, odd, a.z, b.z, v[1].x, v[1].y);
      product_8(odd, even, a.w, b.w, v[1].z, v[1].w);
    } else {
      H::mma(even, a.x, b.x, a.y, b.y, v[0].x, v[0].y);
      H::mma(odd, a.z, b.z, a.w, b.w, v[0].z, v[0].w);
    }
  }

  struct Sums {
    float c[PRODUCTS][CHAINS][4];
    __device__ __forceinline__ void clear() {
#pragma unroll
      for (int p = 0; p < PRODUCTS; ++p)
#pragma unroll
        for (int k = 0; k < CHAINS; ++k)
#pragma unroll
          for (int i = 0; i < 4; ++i) c[p][k][i] = 0.0f;
    }
    __device__ __forceinline__ float of(int product, int i) const {
      float sum = c[product][0][i];
#pragma unroll
      for (int k = 1; k < CHAINS; ++k) sum += c[product][k][i];
      return sum;
    }
  };

  // Step s of a window: the products of all columns. A lane gives column n = g its input where the column's slot is
  // the lane's, else zeros.
  static __device__ __forceinline__ void
  compute_step(Sums& sums, const Window& now, const unsigned char* shared, const Lane& lane, int window, int s) {
    const int row = lane.g % ROWS2, place = lane.g / ROWS2;
    const int at = ZEROS + row * ROW_STRIDE + ((window * STEPS + s) * CHUNKS * 4 + lane.t) * 16;
#pragma unroll
    for (int p = 0; p < PRODUCTS; ++p) {
      if (!used(s, p)) continue;
      const bool active = slot(s, lane.t) == place * PRODUCTS + p && (ROWS == ROWS2 || row < ROWS);
      const unsigned char* x = shared + (active ? at : 0);
      product(sums.c[p][2 * s % CHAINS], sums.c[p][(2 * s + 1) % CHAINS], now.codes[0][s], now.codes[1][s], x);
    }
  }

  // y[i][h]: this thread's share of output g + 8 h, for its row i (of one if ROWS2 is 1, else two).
  static __device__ __forceinline__ void
  scale(float (&y)[2][2], const Sums& sums, const Window& now, const unsigned char* shared, const Lane& lane,
        int window) {
    const float* totals = reinterpret_cast<const float*>(shared + SUMS_AT);
    if (lane.held >= SLOTS) return;
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
      if (i >= SLOTS || (SLOTS % HELD != 0 && lane.held + i >= SLOTS)) continue;
      const int group = window * SLOTS + lane.held + i;
#pragma unroll
      for (int j = 0; j < (ROWS2 == 1 ? 1 : 2); ++j) {
        const int row = ROWS2 == 1 ? 0 : (2 * lane.t + j) % ROWS2;
        const float total = ROWS == ROWS2 || row < ROWS ? totals[row * ALL_GROUPS + group] : 0.0f;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float2 scales = H::split(now.scales[h][PAIRS ? i / 2 * 2 : i]);
          const float2 biases = H::split(now.biases[h][PAIRS ? i / 2 * 2 : i]);
          const float sum = ROWS2 == 1 ? sums.of(0, i + 2 * h) : sums.of(i, j + 2 * h);
          y[j][h] = fmaf(PAIRS && i % 2 ? scales.y : scales.x, fmaf(-OFFSET, total, sum), y[j][h]);
          y[j][h] = fmaf(PAIRS && i % 2 ? biases.y : biases.x, total, y[j][h]);
        }
      }
    }
  }

  // Adds the shares of lanes and puts a warp's 16 outputs of each row into `partial`.
  static __device__ __forceinline__ void leave(float (&y)[2][2], float* partial, const Lane& lane) {
    float* mine = partial + (lane.warp_r * WK + lane.warp_k) * ROWS * 16;
#pragma unroll
    for (int j = 0; j < (ROWS2 == 1 ? 1 : 2); ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if (ROWS2 <= 2) y[j][h] += __shfl_xor_sync(~0u, y[j][h], 1);
        if (ROWS2 <= 4) y[j][h] += __shfl_xor_sync(~0u, y[j][h], 2);
        const int row = ROWS2 == 1 ? 0 : 2 * lane.t + j;
        if (2 * lane.t < ROWS2 && row < ROWS) mine[row * 16 + lane.g + 8 * h] = y[j][h];
      }
    }
  }

  // ---- The outputs ----

  // What is added to a thread's outputs, asked for long before it is used.
  struct Added {
    T bias[OUTPUTS_PER_THREAD], residual[OUTPUTS_PER_THREAD];
  };

  // Output of this thread's i-th sum in a block's tile, and its row of the input.
  static __device__ __forceinline__ int output(int tile, int i) {
    return tile * 16 * WR + (threadIdx.x + i * THREADS) % (16 * WR);
  }
  static __device__ __forceinline__ int output_row(int i) {
    return (threadIdx.x + i * THREADS) / (16 * WR);
  }
  static __device__ __forceinline__ bool has_output(int tile, int i) {
    return output_row(i) < ROWS && output(tile, i) < OUT;
  }

  static __device__ __forceinline__ void ask_added(Added& to, const T* bias, const T* residual, int tile) {
#pragma unroll
    for (int i = 0; i < OUTPUTS_PER_THREAD; ++i) {
      if (!has_output(tile, i)) continue;
      if (BIAS) to.bias[i] = bias[output(tile, i)];
      if (RESIDUAL) to.residual[i] = residual[output_row(i) * OUT + output(tile, i)];
    }
  }

  static __device__ __forceinline__ void store(T* out, const float* partial, const Added& added, int tile) {
#pragma unroll
    for (int i = 0; i < OUTPUTS_PER_THREAD; ++i) {
      if (!has_output(tile, i)) continue;
      const int in_tile = output(0, i), row = output_row(i);
      float sum = 0.0f;
#pragma unroll
      for (int part = 0; part < WK; ++part) {
        sum += partial[((in_tile / 16 * WK + part) * ROWS + row) * 16 + in_tile % 16];
      }
      if (BIAS) sum += static_cast<float>(added.bias[i]);
      if (RESIDUAL) sum += static_cast<float>(added.residual[i]);
      out[row * OUT + output(tile, i)] = static_cast<T>(sum);
    }
  }

  // ---- All of it ----

  static __device__ __forceinline__ void run(const Inputs& in, void* memory) {
    unsigned char* shared = static_cast<unsigned char*>(memory);
    const Lane lane;
    const T* x = static_cast<const T*>(in.x);
    const unsigned char* w = static_cast<const unsigned char*>(in.w);
    const T* scales = static_cast<const T*>(in.scales);
    const T* biases = static_cast<const T*>(in.biases);
    const T* bias = static_cast<const T*>(in.bias);
    const T* residual = static_cast<const T*>(in.residual);
    T* out = static_cast<T*>(in.out);
    const T* gain = static_cast<const T*>(in.gain);
    if constexpr (EXPERTS != NO_EXPERTS) {
      const size_t choice = blockIdx.y, expert = in.experts[choice];
      if (EXPERTS == INPUT_PER_EXPERT) x += choice * ROWS * X_ROW;
      w += expert * OUT * ROW_BYTES;
      scales += expert * OUT * GROUPS;
      biases += expert * OUT * GROUPS;
      bias += expert * OUT;
      residual += choice * ROWS * OUT;
      out += choice * ROWS * OUT;
    }

    ask(shared, x, gain);
    int tile = blockIdx.x;
    const Where start = where(w, scales, biases, lane, tile, lane.warp_k);
    Window now;
#pragma unroll
    for (int s = 0; s < STEPS; ++s) now.codes[0][s] = now.codes[1][s] = make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
      now.scales[0][i] = now.scales[1][i] = now.biases[0][i] = now.biases[1][i] = 0;
    }
#pragma unroll
    for (int s = 0; s < FIRST_STEPS; ++s) load_step(now, start, s);
    keep_order();
    if constexpr (FIRST_STEPS < STEPS) arrive(shared);
#pragma unroll
    for (int s = FIRST_STEPS; s < STEPS; ++s) load_step(now, start, s);
    load_scales(now, start, lane);
    Added added;
    ask_added(added, bias, residual, tile);
    keep_order();
    if constexpr (FIRST_STEPS >= STEPS) arrive(shared);

    stage(shared, x, gain, in.eps);

    float* partial = reinterpret_cast<float*>(shared + PARTIAL_AT);
    while (tile < TILES) {
      float y[2][2] = {{0.0f, 0.0f}, {0.0f, 0.0f}};
      Sums sums;
      sums.clear();
      const int next_tile = tile + gridDim.x;
#pragma unroll 1
      for (int window = lane.warp_k; window < WINDOWS; window += WK) {
        const bool last = window + WK >= WINDOWS;
        const Where next =
            where(w, scales, biases, lane, last ? next_tile : tile, last ? lane.warp_k : window + WK);
#pragma unroll
        for (int s = 0; s < STEPS; ++s) {
          compute_step(sums, now, shared, lane, window, s);
          load_step(now, next, s);
          keep_order();
        }
        if constexpr (CODED) {
          scale(y, sums, now, shared, lane, window);
          sums.clear();
          load_scales(now, next, lane);
        }
      }
      if constexpr (!CODED) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          y[0][h] = ROWS2 == 1 ? sums.of(0, 2 * h) + sums.of(0, 2 * h + 1) : sums.of(0, 2 * h);
          y[1][h] = sums.of(0, 2 * h + 1);
        }
      }

      leave(y, partial, lane);
      __syncthreads();
      store(out, partial, added, tile);
      ask_added(added, bias, residual, next_tile);
      // The next tile's sums go elsewhere: the barrier above then orders the one after it.
      partial = reinterpret_cast<float*>(shared + PARTIAL_AT) +
          (partial == reinterpret_cast<float*>(shared + PARTIAL_AT) ? PARTIAL : 0);
      tile = next_tile;
    }
  }
};

}  // namespace rillm
