# Kernels for one instruction set instead of three: the same sources, and a third of the time to build. It is the best that the kernels have for this machine, so
# that the sanitizers see the vectors that users run; on other processors the compiler's default. Such a build runs on machines like this one only.
include(CheckCXXSourceRuns)

set(FOVEA_FLAGS_avx512 -march=x86-64-v4 -maes -mpclmul)      # what Highway asks for before it believes in AVX-512
set(FOVEA_FEATURES_avx512 avx512f avx512bw avx512cd avx512dq avx512vl aes pclmul)
set(FOVEA_FLAGS_avx2 -march=x86-64-v3 -maes -mpclmul)
set(FOVEA_FEATURES_avx2 avx2 fma bmi2 aes pclmul)

set(FOVEA_INSTRUCTION_SET "the compiler's default")
foreach(isa avx512 avx2)
  set(condition "1")
  foreach(feature ${FOVEA_FEATURES_${isa}})
    string(APPEND condition " && __builtin_cpu_supports(\"${feature}\")")
  endforeach()
  list(JOIN FOVEA_FLAGS_${isa} " " CMAKE_REQUIRED_FLAGS)
  check_cxx_source_runs("int main() { __builtin_cpu_init(); return ${condition} ? 0 : 1; }" FOVEA_RUNS_${isa})
  unset(CMAKE_REQUIRED_FLAGS)
  if(FOVEA_RUNS_${isa})
    set(FOVEA_INSTRUCTION_SET ${isa})
    target_compile_options(fovea PRIVATE ${FOVEA_FLAGS_${isa}})
    break()
  endif()
endforeach()
target_compile_definitions(fovea PRIVATE HWY_COMPILE_ONLY_STATIC)
