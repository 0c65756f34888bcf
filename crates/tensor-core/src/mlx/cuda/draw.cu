// A token drawn from a row of logits: filters by rank, mass and ratio, then the cumulative distribution of what they
// leave, inverted in the order of ids (tensor-core's `Sampling`).
//
// This is the header of the custom kernel `draw`; its body is draw_body.cu, which lists inputs and constants.
//
// A block takes a row. Masses are exp(logit - best) in units of 2^-40, so that sums are the same in any order. A rank or a
// part of the mass is found with histograms of counts and masses: by the distance from the best, which spreads logits over
// the bins, then digit by digit among those that are equally far.

namespace rillm {

using u32 = unsigned int;
using u64 = unsigned long long;

template <typename T, int VOCAB, int THREADS>
struct Draw {
  static constexpr int BINS = 2048, WARPS = THREADS / 32, PER_THREAD = BINS / THREADS;
  static constexpr int SEGMENT = (VOCAB + THREADS - 1) / THREADS;

  struct Shared {
    u32 counts[BINS];
    u64 masses[BINS];
    u64 warps[WARPS];
    u64 total;
    u64 above_mass;
    u32 above_count;
    u32 digit;
    u32 id;
    float best[WARPS];
  };

  struct Settings {
    float temperature, top_p, least;
    bool tempered;
    u32 top_k;
  };

  // Where a filter stops: the lowest key that it leaves, and what lies above that.
  struct Cut {
    u32 key, count;
    u64 mass;
  };

  // A number that grows with x; -0 is 0.
  static __device__ u32 key(float x) {
    const u32 bits = __float_as_uint(x + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
  }

  static __device__ u64 mass(float x) { return u64(expf(fminf(x, 0.0f)) * 1099511627776.0f); }

  // How far a token with the mass of `x` is below the best, in bins. What is in the last one has no mass.
  static __device__ int distance(float x) { return int(fminf(fmaxf(x * -64.0f, 0.0f), float(BINS - 1))); }

  // The sum over the threads before this one; `total` over all.
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
    for (int i = threadIdx.x; i < VOCAB; i += THREADS) best = fmaxf(best, float(row[i]));
    for (int step = 16; step > 0; step /= 2) best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, step));
    if (threadIdx.x % 32 == 0) s.best[threadIdx.x / 32] = best;
    __syncthreads();
    best = s.best[0];
    for (int w = 1; w < WARPS; ++w) best = fmaxf(best, s.best[w]);
    return best;
  }

  // The lowest value with less than `count` values and less than `limit` of mass strictly above it. If `part` is not 0,
  // the limit is that part of the whole mass.
  static __device__ Cut
  cut(Shared& s, const T* row, float best, float scale, u64 count, u64 limit, float part) {
    Cut found = {0, 0, 0};
    const int shifts[3] = {21, 10, 0}, widths[3] = {11, 11, 10};
    int far = 0;
    for (int round = -1; round < 3; ++round) {
      const int shift = round < 0 ? 0 : shifts[round], bins = round < 0 ? BINS : 1 << widths[round];
      const u32 fixed = round <= 0 ? 0 : ~0u << shifts[round - 1];
      for (int bin = threadIdx.x; bin < BINS; bin += THREADS) {
        s.counts[bin] = 0;
        s.masses[bin] = 0;
      }
      __syncthreads();
      u32 farthest = 0;
      for (int i = threadIdx.x; i < VOCAB; i += THREADS) {
        const float x = float(row[i]), above = (x - best) / scale;
        const int away = distance(above);
        if (round < 0) {
          if (away == BINS - 1) {
            ++farthest;
          } else {
            atomicAdd(&s.counts[away], 1u);
            atomicAdd(&s.masses[away], mass(above));
          }
        } else if (away == far && (key(x) & fixed) == found.key) {
          // From the highest digit down.
          const int bin = bins - 1 - ((key(x) >> shift) & (bins - 1));
          atomicAdd(&s.counts[bin], 1u);
          atomicAdd(&s.masses[bin], mass(above));
        }
      }
      if (farthest > 0) atomicAdd(&s.counts[BINS - 1], farthest);
      __syncthreads();
      const int first = threadIdx.x * PER_THREAD;
      u64 counts = 0, masses = 0;
      for (int i = 0; i < PER_THREAD; ++i) {
        counts += s.counts[first + i];
        masses += s.masses[first + i];
      }
      u64 above_count = before(s, counts) + found.count;
      u64 above_mass = before(s, masses) + found.mass;
      if (round < 0 && part != 0.0f) limit = max(u64(double(s.total) * double(part)), u64(1));
      if (threadIdx.x == 0) s.digit = 0;
      __syncthreads();
      for (int i = 0; i < PER_THREAD; ++i) {
        const int bin = first + i;
        if (s.counts[bin] > 0 && above_count < count && above_mass < limit) atomicMax(&s.digit, u32(bin));
        above_count += s.counts[bin];
        above_mass += s.masses[bin];
      }
      __syncthreads();
      // Who has that bin says what lies above it.
      const int digit = s.digit;
      if (digit / PER_THREAD == int(threadIdx.x)) {
        for (int bin = first + PER_THREAD - 1; bin >= digit; --bin) {
          above_count -= s.counts[bin];
          above_mass -= s.masses[bin];
        }
        s.above_count = u32(above_count);
        s.above_mass = above_mass;
      }
      __syncthreads();
      if (round < 0) far = digit;
      const u32 more = round < 0 ? 0 : u32(bins - 1 - digit) << shift;
      found = {found.key | more, s.above_count, s.above_mass};
      __syncthreads();
    }
    return found;
  }

  static __device__ void run(const T* row, float point, const Settings& how, u32* out) {
    __shared__ Shared s;
    const float best = highest(s, row);
    const float scale = how.tempered ? how.temperature : 1.0f;
    const u64 all = ~0ull;
    Cut rank = {0, 0, 0}, nucleus = {0, 0, 0};
    const bool ranks = how.top_k > 0 && how.top_k < VOCAB;
    if (ranks) rank = cut(s, row, best, scale, how.top_k, all, 0.0f);
    if (how.top_p > 0.0f && how.top_p < 1.0f) {
      if (how.tempered && ranks) {
        // Of equal ones at the end only some are left.
        const u32 bits = rank.key >> 31 ? rank.key & 0x7fffffffu : ~rank.key;
        const u64 equal = mass((__uint_as_float(bits) - best) / scale);
        const u64 whole = rank.mass + equal * (how.top_k - rank.count);
        const u64 limit = max(u64(double(whole) * double(how.top_p)), u64(1));
        nucleus = cut(s, row, best, scale, all, limit, 0.0f);
      } else {
        nucleus = cut(s, row, best, scale, all, all, how.top_p);
      }
    }

    const int begin = min(int(threadIdx.x) * SEGMENT, VOCAB), end = min(begin + SEGMENT, VOCAB);
    const u64 room = ranks ? how.top_k - rank.count : all;
    u64 equals = 0;
    if (ranks) {
      for (int i = begin; i < end; ++i) equals += key(float(row[i])) == rank.key;
      equals = before(s, equals);
    }
    // What is left of token i; counts equals in passing.
    auto weight = [&](int i, u64& equals) -> u64 {
      const float x = float(row[i]);
      const u32 k = key(x);
      const bool is_equal = ranks && k == rank.key;
      const u64 earlier = equals;
      equals += is_equal;
      const bool left = k >= rank.key && k >= nucleus.key && (x - best) / scale >= how.least;
      return left && !(is_equal && earlier >= room) ? mass((x - best) / how.temperature) : 0;
    };
    u64 sum = 0, seen = equals;
    for (int i = begin; i < end; ++i) sum += weight(i, seen);
    u64 below = before(s, sum);
    // point is a multiple of 2^-24: the product is exact.
    const u64 fraction = u64(point * 16777216.0f), whole = s.total;
    const u64 target = (whole >> 24) * fraction + ((whole & 0xffffffu) * fraction >> 24);
    // Where there is no distribution, some token.
    if (whole == 0 && threadIdx.x == 0) *out = 0;
    if (below <= target && target < below + sum) {
      seen = equals;
      for (int i = begin; i < end; ++i) {
        below += weight(i, seen);
        if (below > target) {
          *out = i;
          break;
        }
      }
    }
  }
};

}  // namespace rillm
