// SIMD through Highway, header-only. A kernel file is compiled once for each instruction set (foreach_target.h includes it again) inside
// HWY_NAMESPACE; FOVEA_BEST(function) then picks the version for the processor at start-up. We make that choice ourselves, so the library does not
// link against libhwy. FOVEA_SIMD=scalar|avx2|avx512 in the environment lowers the choice (tests run every version).
//
// Shape of a kernel file:
//     #include <fovea/kernels/cpu/...>                       // ordinary headers first
//     #undef HWY_TARGET_INCLUDE
//     #define HWY_TARGET_INCLUDE "kernels/cpu/family.cpp"
//     #include <fovea/kernels/cpu/simd.h>
//     HWY_BEFORE_NAMESPACE();
//     namespace fovea::kernels::HWY_NAMESPACE { ... kernels ... }
//     HWY_AFTER_NAMESPACE();
//     #if HWY_ONCE
//     namespace fovea::kernels { void add_family(KernelTable& t) { t.entry = FOVEA_BEST(entry); } }
//     #endif
// A lambda that uses vectors needs HWY_ATTR between its parameters and its body (GCC does not hand the target down to lambdas).

#if !defined(FOVEA_SIMD_H_ONCE)
#define FOVEA_SIMD_H_ONCE
#include <hwy/base.h>
// Three versions are enough for x86-64 (baseline, AVX2, AVX-512); every further one costs compile time.
#if defined(HWY_MAJOR) && (HWY_MAJOR > 1 || HWY_MINOR >= 1)
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_AVX3_ZEN4 | HWY_AVX3_SPR)
#else
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL)
#endif

namespace fovea::kernels {
enum class Isa { scalar, avx2, avx512 };
Isa best_isa();                              // of this processor, or lower when FOVEA_SIMD says so
const char* name_of(Isa isa);
}  // namespace fovea::kernels
#endif

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#if HWY_ONCE
#if HWY_TARGETS & HWY_AVX3
#define FOVEA_IF_AVX512(function) if (best_isa() == Isa::avx512) return &N_AVX3::function;
#else
#define FOVEA_IF_AVX512(function)
#endif
#if HWY_TARGETS & HWY_AVX2
#define FOVEA_IF_AVX2(function) if (best_isa() >= Isa::avx2) return &N_AVX2::function;
#else
#define FOVEA_IF_AVX2(function)
#endif
#define FOVEA_BEST(function)               \
  [] {                                     \
    FOVEA_IF_AVX512(function)              \
    FOVEA_IF_AVX2(function)                \
    return &HWY_STATIC_DISPATCH(function); \
  }()
#endif
