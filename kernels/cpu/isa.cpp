#include <cstdlib>
#include <string_view>

#define HWY_TARGET_INCLUDE "kernels/cpu/isa.cpp"
#include <fovea/kernels/cpu/simd.h>

#if HWY_ONCE
namespace fovea::kernels {
namespace {

Isa of_processor() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx2 && has_avx512) return Isa::avx512;
  if (has_avx2) return Isa::avx2;
#endif
  return Isa::scalar;
}

Isa chosen() {
  const char* wish = std::getenv("FOVEA_SIMD");
  const Isa best = of_processor();
  if (!wish) return best;
  const std::string_view name = wish;
  const Isa wanted = name == "scalar" ? Isa::scalar : name == "avx2" ? Isa::avx2 : Isa::avx512;
  return wanted < best ? wanted : best;
}

}  // namespace

Isa best_isa() {
  static const Isa isa = chosen();
  return isa;
}

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::scalar: return "scalar";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
  }
  return "";
}

}  // namespace fovea::kernels
#endif
