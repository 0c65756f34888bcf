// Products of 1 to 8 rows with MLX's affine codes or plain 16-bit weights on tensor cores; no products of prompts.
//
// This is the header of the custom kernel `matvec`; its body is matvec_body.cu, which lists inputs and constants.
// Requires compute capability 8.0 (mma.m16n8k16), written for the memory system of 9.0.
//
// How it works. A matrix-vector product only moves weights, so everything here serves bytes in flight:
// * A warp takes 16 outputs and loads 16 bytes of codes per lane for outputs `g` and `g + 8` (g = lane / 4), STEPS
//   times, before it uses any. Each step reloads the registers it has just used: loads stay in flight all the time.
// * A warp reads, prepares and puts into shared memory the columns that it multiplies, and no others: warps wait for
//   each other only for a norm and where the sums of a tile meet. The input is asked for before any weights: all blocks
//   read the same few lines, and a read that queues up behind all blocks' weights comes thousands of cycles late.
// * Codes are numbers of the tensor core as they are: q at the bottom of a float16 is q * 2^-24, and 16 times as much
//   where it is the upper half of a byte. The input becomes float16 for it, times a power of two that suits the group:
//   what bfloat16 holds of numbers down to 2^-24 of the group's largest is kept exactly. Per group, in float32:
//   y += scale * unit * sum(x * q) + bias * sum(x).
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

// What differs between the 16-bit floats: conversion of pairs, the tensor core's instruction.
template <typename T>
struct Half;

template <>
struct Half<__nv_bfloat16> {
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

// 16 bytes that others read too. Unchanged unless `wanted`.
__device__ __forceinline__ void fetch(uint4& to, const void* from, bool wanted) {
  asm volatile(
      "{ .reg .pred p; setp.ne.u32 p, %5, 0;\n"
      "@p ld.global.v4.u32 {%0,%1,%2,%3}, [%4]; }"
      : "+r"(to.x), "+r"(to.y), "+r"(to.z), "+r"(to.w)
      : "l"(from), "r"(u32(wanted)));
}

// Keeps loads where they are written: the assembler moves read-only loads (ld.global.nc), and others within a block of
// instructions, to where registers are scarce least, which is after the work that they are meant to overlap.
__device__ __forceinline__ void keep_order() {
  __syncwarp();
}

template <
    typename T, int BITS, int GROUP, int IN, int OUT, int ROWS, int PROLOGUE, bool BIAS, bool RESIDUAL, int EXPERTS,
    int STEPS, int WARPS>
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

  static constexpr int THREADS = 32 * WARPS;
  static constexpr int TILES = (OUT + 15) / 16;
  static constexpr int OUTPUTS = 16 * ROWS;
  static constexpr int OUTPUTS_PER_THREAD = (OUTPUTS + THREADS - 1) / THREADS;

  // Shared memory: zeros, rows of the input, totals and units of their groups (rows beside each other), partial sums of
  // outputs (twice), sums of squares. Rows of the input start half of all banks apart.
  static constexpr int CHUNKS = LANE / 8;
  static constexpr int ZEROS = 64 * CHUNKS;
  static constexpr int ROW_STRIDE = COLUMNS * 2 + (COLUMNS * 2 % 128 == 0 ? 64 : 0);
  static constexpr int GROUPS_AT = ZEROS + ROWS * ROW_STRIDE;
  static constexpr int PARTIAL_AT = GROUPS_AT + (CODED ? ROWS * ALL_GROUPS * 8 : 0);
  static constexpr int PARTIAL = WARPS * ROWS * 16;
  static constexpr int SQUARES_AT = PARTIAL_AT + 2 * PARTIAL * 4;
  static constexpr int SHARED = SQUARES_AT + (PROLOGUE == RMS_NORM ? WARPS * ROWS * 4 : 0);

  // A warp's columns of the input, in pieces of a chunk of 8 for each lane and row, and how many it has in flight.
  static constexpr int X_ROW = GATED ? 2 * IN : IN;
  static constexpr int CHUNKS_OF_WINDOW = WINDOW / 8;
  static constexpr int CHUNKS_OF_ROW = COLUMNS / 8;
  static constexpr int PIECES = ((WINDOWS + WARPS - 1) / WARPS * CHUNKS_OF_WINDOW + 31) / 32;
  // Many warps have few registers.
  static constexpr int PIECE = PROLOGUE == RMS_NORM ? ROWS + 1 : GATED ? 2 * ROWS : ROWS;
  static constexpr int ROOM = (WARPS > 12 ? 8 : 16) / PIECE > 1 ? (WARPS > 12 ? 8 : 16) / PIECE : 1;
  static constexpr int AHEAD = PIECES < ROOM ? PIECES : ROOM;

  static_assert(BITS == 4 || BITS == 8 || BITS == 16);
  static_assert(ROWS >= 1 && ROWS <= 8);
  static_assert(IN % LANE == 0, "a row is a number of 16 bytes");
  static_assert(!CODED || (IN % GROUP == 0 && WINDOW % GROUP == 0 && SLOTS <= 8), "a window is 1 to 8 groups");
  static_assert(WARPS <= WINDOWS && THREADS <= 1024);

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

  struct Lane {
    int g, t;        // output and quarter of a step
    int warp;
    int held;        // first slot whose sums this thread holds
    __device__ __forceinline__ Lane() {
      const int lane = threadIdx.x % 32;
      g = lane / 4;
      t = lane % 4;
      warp = threadIdx.x / 32;
      held = ROWS2 == 1 ? 2 * t : ROWS2 * (2 * t / ROWS2);
    }
  };

  // ---- The input ----

  // Where a chunk of 8 positions is in shared memory: lanes of a step beside each other.
  static __device__ __forceinline__ uint4* chunk_at(unsigned char* shared, int row, int chunk) {
    const int step = chunk / (4 * CHUNKS), lane = chunk / CHUNKS % 4, part = chunk % CHUNKS;
    return reinterpret_cast<uint4*>(shared + ZEROS + row * ROW_STRIDE + ((step * CHUNKS + part) * 4 + lane) * 16);
  }

  // Chunks of rows, and what belongs to the same positions: the gain, or the upper half of the gate.
  struct Piece {
    uint4 x[ROWS], other[GATED ? ROWS : 1];
  };

  // This lane's chunk in the warp's i-th piece; CHUNKS_OF_ROW or more if there is none.
  static __device__ __forceinline__ int chunk_of(const Lane& lane, int i) {
    const int chunk = i * 32 + threadIdx.x % 32;
    return (lane.warp + chunk / CHUNKS_OF_WINDOW * WARPS) * CHUNKS_OF_WINDOW + chunk % CHUNKS_OF_WINDOW;
  }

  static __device__ __forceinline__ void ask(Piece& to, const T* x, const T* gain, int chunk) {
    const bool wanted = chunk < IN / 8;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      to.x[r] = make_uint4(0, 0, 0, 0);
      fetch(to.x[r], x + r * X_ROW + chunk * 8, wanted);
    }
#pragma unroll
    for (int r = 0; r < (GATED ? ROWS : PROLOGUE == RMS_NORM ? 1 : 0); ++r) {
      to.other[r] = make_uint4(0, 0, 0, 0);
      fetch(to.other[r], GATED ? x + r * X_ROW + IN + chunk * 8 : gain + chunk * 8, wanted);
    }
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

  // Prepares a chunk. For coded weights its numbers become float16, times a power of two that takes the largest of the
  // group to 2^14 .. 2^15, and are ordered as codes leave their words.
  // All lanes of a warp come here together; those beyond the row with zeros.
  static __device__ __forceinline__ uint4
  prepared(unsigned char* shared, int row, int chunk, uint4 a, uint4 b, float norm) {
    const u32 v[4] = {prepare(a.x, b.x, norm), prepare(a.y, b.y, norm), prepare(a.z, b.z, norm),
                      prepare(a.w, b.w, norm)};
    if constexpr (!CODED) return make_uint4(v[0], v[1], v[2], v[3]);
    float x[8], total = 0.0f, most = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 p = H::split(v[i]);
      x[2 * i] = p.x, x[2 * i + 1] = p.y;
      total += p.x + p.y;
      most = fmaxf(most, fmaxf(fabsf(p.x), fabsf(p.y)));
    }
#pragma unroll
    for (int d = 1; d < GROUP / 8; d *= 2) {
      total += __shfl_xor_sync(~0u, total, d);
      most = fmaxf(most, __shfl_xor_sync(~0u, most, d));
    }
    // As floats have it. The unit is infinite if the largest is 2^118 or more.
    const u32 exponent = max(__float_as_uint(most) >> 23, 14u);
    if (chunk * 8 % GROUP == 0 && chunk < CHUNKS_OF_ROW) {
      // A code of 1 is 2^-24.
      reinterpret_cast<float2*>(shared + GROUPS_AT)[chunk * 8 / GROUP * ROWS + row] =
          make_float2(total, __uint_as_float(min(exponent - 14 + 24, 255u) << 23));
    }
    const float unit = __uint_as_float((254 + 14 - exponent) << 23);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] *= BITS == 4 && i % 2 ? unit / 16 : unit;
    if constexpr (BITS == 4) {
      return make_uint4(Half<__half>::pair(x[0], x[4]), Half<__half>::pair(x[1], x[5]), Half<__half>::pair(x[2], x[6]),
                        Half<__half>::pair(x[3], x[7]));
    } else {
      return make_uint4(Half<__half>::pair(x[0], x[2]), Half<__half>::pair(x[1], x[3]), Half<__half>::pair(x[4], x[6]),
                        Half<__half>::pair(x[5], x[7]));
    }
  }

  // Sums of squares of a warp's columns, one for each row.
  static __device__ __forceinline__ float* squares(unsigned char* shared, int warp) {
    return reinterpret_cast<float*>(shared + SQUARES_AT) + warp * ROWS;
  }
  static __device__ __forceinline__ void leave_squares(float (&sums)[ROWS], unsigned char* shared, const Lane& lane) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
      for (int d = 16; d > 0; d /= 2) sums[r] += __shfl_xor_sync(~0u, sums[r], d);
      if (threadIdx.x % 32 == 0) squares(shared, lane.warp)[r] = sums[r];
    }
  }
  static __device__ __forceinline__ float norm(unsigned char* shared, int row, float eps) {
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < WARPS; ++k) sum += squares(shared, k)[row];
    return rsqrtf(sum / IN + eps);
  }

  // Prepares a warp's columns, of which `pieces` are on their way.
  static __device__ __forceinline__ void
  stage(unsigned char* shared, Piece (&pieces)[AHEAD], const T* x, const T* gain, float eps, const Lane& lane) {
    const int l = threadIdx.x % 32;
    if (l < ZEROS / 16) reinterpret_cast<uint4*>(shared)[l] = make_uint4(0, 0, 0, 0);
    float norms[ROWS] = {};
    if constexpr (PROLOGUE == RMS_NORM) {
      float sums[ROWS] = {};
#pragma unroll
      for (int i = 0; i < AHEAD; ++i)
#pragma unroll
        for (int r = 0; r < ROWS; ++r) sums[r] += square(pieces[i].x[r]);
#pragma unroll 1
      for (int i = AHEAD; i < PIECES; ++i) {
        Piece later;
        ask(later, x, gain, chunk_of(lane, i));
#pragma unroll
        for (int r = 0; r < ROWS; ++r) sums[r] += square(later.x[r]);
      }
      leave_squares(sums, shared, lane);
      __syncthreads();
#pragma unroll
      for (int r = 0; r < ROWS; ++r) norms[r] = norm(shared, r, eps);
    }
#pragma unroll 1
    for (int first = 0; first < PIECES; first += AHEAD) {
#pragma unroll
      for (int i = 0; i < AHEAD; ++i) {
        const int chunk = chunk_of(lane, first + i);
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
          const uint4 v = prepared(shared, r, chunk, pieces[i].x[r], pieces[i].other[GATED ? r : 0], norms[r]);
          if (chunk < CHUNKS_OF_ROW) *chunk_at(shared, r, chunk) = v;
        }
        if (AHEAD < PIECES) ask(pieces[i], x, gain, chunk_of(lane, first + AHEAD + i));
      }
    }
    __syncwarp();
  }

  // ---- The weights ----

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
      const size_t output = min(tile * 16 + lane.g + 8 * h, OUT - 1);
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

  // Words of codes of outputs g (a) and g + 8 (b) with the input's pairs for them. A code at the bottom of a float16 is
  // itself, in units of 2^-24; the upper half of a byte is 16 times as much, for which the input is a sixteenth.
  static __device__ __forceinline__ void product_4(float (&even)[4], float (&odd)[4], u32 a, u32 b, uint4 x) {
    constexpr u32 LOWER = 0x000f000fu, UPPER = 0x00f000f0u;
    Half<__half>::mma(even, a & LOWER, b & LOWER, a & UPPER, b & UPPER, x.x, x.y);
    a >>= 8, b >>= 8;
    Half<__half>::mma(odd, a & LOWER, b & LOWER, a & UPPER, b & UPPER, x.z, x.w);
  }
  static __device__ __forceinline__ void product_8(float (&sum)[4], u32 a, u32 b, u32 x0, u32 x1) {
    constexpr u32 BYTE = 0x00ff00ffu;
    Half<__half>::mma(sum, a & BYTE, b & BYTE, a >> 8 & BYTE, b >> 8 & BYTE, x0, x1);
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
      product_8(even, a.x, b.x, v[0].x, v[0].y);
      product_8(odd, a.y, b.y, v[0].z, v[0].w);
      product_8(even, a.z, b.z, v[1].x, v[1].y);
      product_8(odd, a.w, b.w, v[1].z, v[1].w);
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
    const float2* groups = reinterpret_cast<const float2*>(shared + GROUPS_AT);
    if (lane.held >= SLOTS) return;
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
      if (i >= SLOTS || (SLOTS % HELD != 0 && lane.held + i >= SLOTS)) continue;
      const int group = window * SLOTS + lane.held + i;
#pragma unroll
      for (int j = 0; j < (ROWS2 == 1 ? 1 : 2); ++j) {
        const int row = ROWS2 == 1 ? 0 : (2 * lane.t + j) % ROWS2;
        const float2 of_group = groups[group * ROWS + (ROWS == ROWS2 || row < ROWS ? row : 0)];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float2 scales = H::split(now.scales[h][PAIRS ? i / 2 * 2 : i]);
          const float2 biases = H::split(now.biases[h][PAIRS ? i / 2 * 2 : i]);
          const float sum = ROWS2 == 1 ? sums.of(0, i + 2 * h) : sums.of(i, j + 2 * h);
          y[j][h] = fmaf(PAIRS && i % 2 ? scales.y : scales.x, of_group.y * sum, y[j][h]);
          y[j][h] = fmaf(PAIRS && i % 2 ? biases.y : biases.x, of_group.x, y[j][h]);
        }
      }
    }
  }

  // Adds the shares of lanes and puts a warp's 16 outputs of each row into `partial`.
  static __device__ __forceinline__ void leave(float (&y)[2][2], float* partial, const Lane& lane) {
    float* mine = partial + lane.warp * ROWS * 16;
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
    return tile * 16 + (threadIdx.x + i * THREADS) % 16;
  }
  static __device__ __forceinline__ int output_row(int i) {
    return (threadIdx.x + i * THREADS) / 16;
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

  static __device__ __forceinline__ void
  store(T* out, const float* partial, const Added& added, int tile) {
#pragma unroll
    for (int i = 0; i < OUTPUTS_PER_THREAD; ++i) {
      if (!has_output(tile, i)) continue;
      const int in_tile = output(0, i), row = output_row(i);
      float sum = 0.0f;
#pragma unroll
      for (int part = 0; part < WARPS; ++part) sum += partial[(part * ROWS + row) * 16 + in_tile];
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

    Piece pieces[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) ask(pieces[i], x, gain, chunk_of(lane, i));
    keep_order();
    int tile = blockIdx.x;
    const Where start = where(w, scales, biases, lane, tile, lane.warp);
    Window now;
#pragma unroll
    for (int s = 0; s < STEPS; ++s) now.codes[0][s] = now.codes[1][s] = make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < HELD; ++i) {
      now.scales[0][i] = now.scales[1][i] = now.biases[0][i] = now.biases[1][i] = 0;
    }
#pragma unroll
    for (int s = 0; s < STEPS; ++s) load_step(now, start, s);
    load_scales(now, start, lane);
    Added added;
    ask_added(added, bias, residual, tile);
    // Arithmetic on the input may come before the last of these loads: holding it back was slower.
    keep_order();

    stage(shared, pieces, x, gain, in.eps, lane);

    float* partial = reinterpret_cast<float*>(shared + PARTIAL_AT);
    while (tile < TILES) {
      float y[2][2] = {{0.0f, 0.0f}, {0.0f, 0.0f}};
      Sums sums;
      sums.clear();
      const int next_tile = tile + gridDim.x;
#pragma unroll 1
      for (int window = lane.warp; window < WINDOWS; window += WARPS) {
        const bool last = window + WARPS >= WINDOWS;
        const Where next =
            where(w, scales, biases, lane, last ? next_tile : tile, last ? lane.warp : window + WARPS);
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
