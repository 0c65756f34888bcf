// The symbols that mlx-rs 0.33 uses and mlx-c 0.7 does not define on x86-64 Linux. Compiled with mlx-c's own sources.
#include <cstdint>
#include <cstring>
#include <ctime>
#include <exception>

#include "mlx/c/array.h"
#include "mlx/c/error.h"
#include "mlx/c/private/mlx.h"

// Apple's clock, from which mlx-rs seeds its default random state.
extern "C" uint64_t mach_approximate_time(void) {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000u + static_cast<uint64_t>(now.tv_nsec);
}

// mlx/c/half.h has the half types for ARM only. mlx-rs takes both as their 16 bits.
namespace {
template <class Half>
int item(uint16_t* result, mlx_array array) {
  try {
    const Half value = mlx_array_get_(array).item<Half>();
    static_assert(sizeof value == sizeof *result);
    std::memcpy(result, &value, sizeof value);
    return 0;
  } catch (const std::exception& error) {
    mlx_error("%s", error.what());
    return 1;
  }
}

template <class Half>
const uint16_t* data(mlx_array array) {
  try {
    return reinterpret_cast<const uint16_t*>(mlx_array_get_(array).data<Half>());
  } catch (const std::exception& error) {
    mlx_error("%s", error.what());
    return nullptr;
  }
}
} // namespace

extern "C" {
int mlx_array_item_float16(uint16_t* result, const mlx_array array) {
  return item<mlx::core::float16_t>(result, array);
}
int mlx_array_item_bfloat16(uint16_t* result, const mlx_array array) {
  return item<mlx::core::bfloat16_t>(result, array);
}
const uint16_t* mlx_array_data_float16(const mlx_array array) {
  return data<mlx::core::float16_t>(array);
}
const uint16_t* mlx_array_data_bfloat16(const mlx_array array) {
  return data<mlx::core::bfloat16_t>(array);
}
}
