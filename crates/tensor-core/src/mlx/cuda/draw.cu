// A token drawn from a row of logits: filters by rank, mass and ratio, then the cumulative distribution of what they
// leave, inverted in the order of ids (tensor-core's `Sampling`).
//
// This is the header of the custom kernel `draw`; its body is draw_body.cu, which lists inputs and constants.
//
// A block takes a row. Masses are exp(logit - best) in units of 2^-38, so that sums are the same in any order. A histogram of
// how far tokens are below the best, in counts and masses, tells in which bin a filter ends; where in it, is found digit by
// digit among the few tokens of that bin. Its masses are in three parts of 13 bits, each summed up in 32 bits: shared memory
// adds no 64 bits at once. That holds for up to 2^19 tokens.

namespace rillm {

using u32 = unsigned int;
using u64 = unsigned long long;

template <typename T, int VOCAB, int THREADS>
struct Draw {
  static constexpr int BINS = 2048, DIGITS = 256, LIST = 2048, WARPS = THREADS / 32;
  // Logits that a thread loads at once: 16 bytes, if rows are whole numbers of that.
  static constexpr int VECTOR = VOCAB % (16 / int(sizeof(T))) == 0 ? 16 / int(sizeof(T)) : 1;
  static constexpr int PACKS = VOCAB / VECTOR, AHEAD = 4;
  // Packs of a thread where it has consecutive ones.
  static constexpr int SEGMENT = (PACKS + THREADS - 1) / THREADS;
  // Of a mass.
  static constexpr int PARTS = 3, PART_BITS = 13;

  static_assert(VOCAB <= 1 << 19);

  struct alignas(VECTOR * sizeof(T)) Pack {
    T values[VECTOR];
  };

  struct Shared {
    u32 counts[BINS];
    u32 masses[PARTS][BINS];
    u32 digits[DIGITS];
    u64 digit_masses[DIGITS];
    u32 list[LIST];
    u64 warps[WARPS];
    float best[WARPS];
    u64 total, above_mass;
    u32 above_count, last, listed;
  };

  struct Settings {
    float temperature, top_p, least;
    bool tempered;
    u32 top_k;
  };

  // How many tokens, and how much mass.
  struct Amount {
    u64 count, mass;
  };

  // Where a filter ends: the lowest key that it leaves, and what lies above that.
  struct Cut {
    u32 key;
    Amount above;
  };

  // A number that grows with x; -0 is 0.
  static __device__ u32 key(float x) {
    const u32 bits = __float_as_uint(x + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
  }

  static __device__ float value(u32 key) { return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key); }

  static __device__ u64 mass(float x) { return u64(expf(fminf(x, 0.0f)) * 274877906944.0f); }

  // How far a token with the mass of `x` is below the best, in bins. What is in the last one has no mass.
  static __device__ int distance(float x) { return int(fminf(fmaxf(x * -64.0f, 0.0f), float(BINS - 1))); }

  // Calls f(id, logit) for every `step`th pack from `first` up to `end`, several loads ahead.
  template <typename F>
  static __device__ void each(const T* row, int first, int end, int step, F f) {
    const Pack* packs = reinterpret_cast<const Pack*>(row);
    for (int base = first; base < end; base += AHEAD * step) {
      Pack loaded[AHEAD];
#pragma unroll
      for (int a = 0; a < AHEAD; ++a) {
        if (base + a * step < end) loaded[a] = packs[base + a * step];
      }
#pragma unroll
      for (int a = 0; a < AHEAD; ++a) {
        const int pack = base + a * step;
        if (pack < end) {
#pragma unroll
          for (int i = 0; i < VECTOR; ++i) f(pack * VECTOR + i, float(loaded[a].values[i]));
        }
      }
    }
  }

  // Calls f for this thread's part of the row, in any order.
  template <typename F>
  static __device__ void each(const T* row, F f) {
    each(row, threadIdx.x, PACKS, THREADS, f);
  }

  // The sum over the threads before this one; `s.total` over all.
  static __device__ u64 before(Shared& s, u64 value) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u64 sum = value;
    for (int step = 1; step < 32; step *= 2) {
      const u64 other = __shfl_up_sync(0xffffffffu, sum, step);
      if (lane >= step) sum += other;
    }
    __syncthreads();
    if (lane == 31) s.warps[warp] = sum;
    __syncthreads();
    u64 all = 0, earlier = 0;
    for (int w = 0; w < WARPS; ++w) {
      if (w == warp) earlier = all;
      all += s.warps[w];
    }
    if (threadIdx.x == 0) s.total = all;
    __syncthreads();
    return earlier + sum - value;
  }

  static __device__ float highest(Shared& s, const T* row) {
    float best = -INFINITY;
    each(row, [&](int, float x) { best = fmaxf(best, x); });
    for (int step = 16; step > 0; step /= 2) best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, step));
    if (threadIdx.x % 32 == 0) s.best[threadIdx.x / 32] = best;
    __syncthreads();
    best = s.best[0];
    for (int w = 1; w < WARPS; ++w) best = fmaxf(best, s.best[w]);
    return best;
  }

  // Fills `counts` and `masses` and returns the whole mass.
  static __device__ u64 histogram(Shared& s, const T* row, float best, float inverse) {
    for (int bin = threadIdx.x; bin < BINS; bin += THREADS) {
      s.counts[bin] = 0;
      for (int part = 0; part < PARTS; ++part) s.masses[part][bin] = 0;
    }
    __syncthreads();
    u32 farthest = 0;
    u64 sum = 0;
    each(row, [&](int, float x) {
      const float above = (x - best) * inverse;
      const int away = distance(above);
      // There may be very many of these.
      if (away == BINS - 1) {
        ++farthest;
        return;
      }
      const u64 m = mass(above);
      atomicAdd(&s.counts[away], 1u);
      for (int part = 0; part < PARTS; ++part) {
        const u32 digits = u32(m >> part * PART_BITS) & (part + 1 < PARTS ? (1u << PART_BITS) - 1 : ~0u);
        if (digits > 0) atomicAdd(&s.masses[part][away], digits);
      }
      sum += m;
    });
    if (farthest > 0) atomicAdd(&s.counts[BINS - 1], farthest);
    before(s, sum);
    return s.total;
  }

  static __device__ u64 mass_of_bin(const Shared& s, int bin) {
    u64 sum = 0;
    for (int part = 0; part < PARTS; ++part) sum += u64(s.masses[part][bin]) << part * PART_BITS;
    return sum;
  }

  // The last of N bins that has tokens, and less than `limit` above it; what the bins above it have is added to `above`.
  // `masses(bin)` is the mass of one.
  template <int N, typename F>
  static __device__ int last(Shared& s, const u32* counts, F masses, Amount limit, Amount& above) {
    constexpr int EACH = (N + THREADS - 1) / THREADS;
    const int first = threadIdx.x * EACH, end = min(first + EACH, N);
    Amount own = {0, 0};
    for (int bin = first; bin < end; ++bin) {
      own.count += counts[bin];
      own.mass += masses(bin);
    }
    const u64 count = above.count + before(s, own.count);
    const u64 mass = above.mass + before(s, own.mass);
    if (threadIdx.x == 0) s.last = 0;
    __syncthreads();
    Amount seen = {count, mass};
    for (int bin = first; bin < end; ++bin) {
      if (counts[bin] > 0 && seen.count < limit.count && seen.mass < limit.mass) atomicMax(&s.last, u32(bin));
      seen.count += counts[bin];
      seen.mass += masses(bin);
    }
    __syncthreads();
    const int found = s.last;
    if (first <= found && found < end) {
      seen = {count, mass};
      for (int bin = first; bin < found; ++bin) {
        seen.count += counts[bin];
        seen.mass += masses(bin);
      }
      s.above_count = u32(seen.count);
      s.above_mass = seen.mass;
    }
    __syncthreads();
    above = {s.above_count, s.above_mass};
    __syncthreads();
    return found;
  }

  // The lowest value with less than `limit` strictly above it, by the histogram.
  static __device__ Cut cut(Shared& s, const T* row, float best, float inverse, Amount limit) {
    Cut found = {0, {0, 0}};
    const int far = last<BINS>(s, s.counts, [&](int bin) { return mass_of_bin(s, bin); }, limit, found.above);
    const u32 inside = s.counts[far];
    const bool listed = inside <= LIST;
    if (threadIdx.x == 0) s.listed = 0;
    __syncthreads();
    if (listed) {
      each(row, [&](int, float x) {
        if (distance((x - best) * inverse) == far) s.list[atomicAdd(&s.listed, 1u)] = key(x);
      });
      __syncthreads();
    }
    for (int shift = 24; shift >= 0; shift -= 8) {
      for (int bin = threadIdx.x; bin < DIGITS; bin += THREADS) {
        s.digits[bin] = 0;
        s.digit_masses[bin] = 0;
      }
      __syncthreads();
      const u32 fixed = shift == 24 ? 0 : ~0u << (shift + 8);
      auto put = [&](u32 k) {
        if ((k & fixed) != found.key) return;
        // From the highest digit down.
        const int bin = DIGITS - 1 - int(k >> shift & (DIGITS - 1));
        atomicAdd(&s.digits[bin], 1u);
        atomicAdd(&s.digit_masses[bin], mass((value(k) - best) * inverse));
      };
      if (listed) {
        for (u32 i = threadIdx.x; i < inside; i += THREADS) put(s.list[i]);
      } else {
        each(row, [&](int, float x) {
          if (distance((x - best) * inverse) == far) put(key(x));
        });
      }
      __syncthreads();
      const int digit = last<DIGITS>(s, s.digits, [&](int bin) { return s.digit_masses[bin]; }, limit, found.above);
      found.key |= u32(DIGITS - 1 - digit) << shift;
    }
    return found;
  }

  static __device__ void run(const T* row, float point, const Settings& how, u32* out) {
    __shared__ Shared s;
    const float best = highest(s, row);
    // Finite: the best is 0 times this.
    const float cooled = fminf(1.0f / how.temperature, 3e38f), inverse = how.tempered ? cooled : 1.0f;
    const u64 all = ~0ull;
    Cut rank = {0, {0, 0}}, nucleus = rank;
    const bool ranks = how.top_k > 0 && how.top_k < VOCAB, masses = how.top_p > 0.0f && how.top_p < 1.0f;
    u64 whole = ranks || masses ? histogram(s, row, best, inverse) : 0;
    if (ranks) rank = cut(s, row, best, inverse, {how.top_k, all});
    const u64 room = ranks ? how.top_k - rank.above.count : all;
    if (masses) {
      // Where ranks come first, of equal ones at the end only some are left.
      if (how.tempered && ranks) whole = rank.above.mass + mass((value(rank.key) - best) * inverse) * room;
      const u64 limit = u64(double(whole) * double(how.top_p));
      nucleus = cut(s, row, best, inverse, {all, max(limit, u64(1))});
    }

    const int begin = min(int(threadIdx.x) * SEGMENT, PACKS), end = min(begin + SEGMENT, PACKS);
    u64 equals = 0;
    if (ranks) {
      each(row, begin, end, 1, [&](int, float x) { equals += key(x) == rank.key; });
      equals = before(s, equals);
    }
    // What is left of a token; counts equals in passing.
    auto weight = [&](float x, u64& equals) -> u64 {
      const u32 k = key(x);
      const bool is_equal = ranks && k == rank.key;
      const u64 earlier = equals;
      equals += is_equal;
      const bool left = k >= rank.key && k >= nucleus.key && (x - best) * inverse >= how.least;
      return left && !(is_equal && earlier >= room) ? mass((x - best) * cooled) : 0;
    };
    u64 sum = 0, seen = equals;
    each(row, begin, end, 1, [&](int, float x) { sum += weight(x, seen); });
    u64 below = before(s, sum);
    // point is a multiple of 2^-24: the product is exact.
    const u64 fraction = u64(point * 16777216.0f), left = s.total;
    const u64 target = (left >> 24) * fraction + ((left & 0xffffffu) * fraction >> 24);
    // Where there is no distribution, some token.
    if (left == 0 && threadIdx.x == 0) *out = 0;
    if (below <= target && target < below + sum) {
      seen = equals;
      bool found = false;
      each(row, begin, end, 1, [&](int i, float x) {
        below += weight(x, seen);
        if (!found && below > target) {
          *out = i;
          found = true;
        }
      });
    }
  }
};

}  // namespace rillm
