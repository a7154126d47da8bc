file(GLOB FOVEA_SOURCES CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR}
  kernels/*.cpp kernels/cpu/*.cpp tensor/*.cpp autograd/*.cpp layers/*.cpp optim/*.cpp data/*.cpp viz/*.cpp)
if(FOVEA_CUDA OR FOVEA_HOST_CUDA)
  file(GLOB FOVEA_CUDA_KERNELS CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR} kernels/cuda/*.cu kernels/cuda/core/*.cu)
  file(GLOB cuda_sources CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR} kernels/cuda/*.cpp)
  list(REMOVE_ITEM cuda_sources kernels/cuda/no_cuda.cpp)
  if(FOVEA_HOST_CUDA)
    list(REMOVE_ITEM cuda_sources kernels/cuda/blas.cpp)        # the model has a product of its own
    file(GLOB cuda_model CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR} tests/host_cuda/*.cpp)
    list(APPEND cuda_sources ${cuda_model})
    if(FOVEA_SANITIZE MATCHES thread)                           # it watches kernels; the model, which all their threads run through, only tells it what waits for what
      set_source_files_properties(${cuda_model} PROPERTIES COMPILE_OPTIONS "-fno-sanitize=thread;-DHOST_CUDA_TSAN")
    endif()
    set_source_files_properties(${FOVEA_CUDA_KERNELS} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++;-Wno-unknown-pragmas")
  endif()
  list(APPEND FOVEA_SOURCES ${FOVEA_CUDA_KERNELS} ${cuda_sources})
else()
  list(APPEND FOVEA_SOURCES kernels/cuda/no_cuda.cpp)
endif()

# Headers are included as <fovea/folder/file.h>, in the tree as once installed: include/fovea holds a link to each folder, and one to the umbrella <fovea/fovea.h>.
set(FOVEA_HEADER_FOLDERS kernels tensor autograd layers optim data parallel viz)
set(FOVEA_INCLUDE ${PROJECT_BINARY_DIR}/include)
if(IS_SYMLINK ${FOVEA_INCLUDE}/fovea)          # an older build's: fovea was a link to the source root, and links made in it would end up there
  file(REMOVE ${FOVEA_INCLUDE}/fovea)
endif()
file(MAKE_DIRECTORY ${FOVEA_INCLUDE}/fovea)
foreach(folder ${FOVEA_HEADER_FOLDERS})
  file(CREATE_LINK ${PROJECT_SOURCE_DIR}/${folder} ${FOVEA_INCLUDE}/fovea/${folder} SYMBOLIC)
endforeach()
file(CREATE_LINK ${PROJECT_SOURCE_DIR}/cmake/fovea.h ${FOVEA_INCLUDE}/fovea/fovea.h SYMBOLIC)

add_library(fovea ${FOVEA_SOURCES})
add_library(fovea::fovea ALIAS fovea)
target_compile_features(fovea PUBLIC cxx_std_20)
# While the version is 0.x, every minor version may change the ABI.
# No symbol tells a shared library's objects from a static one's: nothing asks for it, and the compiler's cache serves both.
set_target_properties(fovea PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}
  POSITION_INDEPENDENT_CODE ON DEFINE_SYMBOL "")
target_include_directories(fovea
  PUBLIC $<BUILD_INTERFACE:${FOVEA_INCLUDE}> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>
  PRIVATE ${PROJECT_SOURCE_DIR})
target_include_directories(fovea SYSTEM PRIVATE ${FOVEA_HIGHWAY_INCLUDE} ${FOVEA_STB_INCLUDE})
target_link_libraries(fovea PRIVATE Threads::Threads)
if(FOVEA_ONE_INSTRUCTION_SET)
  include(cmake/one_instruction_set.cmake)
endif()
if(FOVEA_HOST_CUDA)
  target_compile_definitions(fovea PUBLIC FOVEA_HOST_CUDA)
  target_include_directories(fovea BEFORE PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/tests/host_cuda>)
endif()
if(FOVEA_CUDA)
  # Constexpr functions (sizes, conversions of half types) are called from kernels too. Nothing is assumed that would make kernels' arithmetic less exact.
  # The dialect is named here because CMake 3.25 knows none of nvcc's newer than C++17.
  target_compile_options(fovea PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20;--expt-relaxed-constexpr$<$<BOOL:${FOVEA_PTXAS_REPORT}>:;-Xptxas=-v>>)
  # One runtime a process: kernels that a program brings itself are launched with the library's help, which a second runtime would know nothing of.
  if(BUILD_SHARED_LIBS)
    set(FOVEA_CUDA_RUNTIME CUDA::cudart)
    set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
  else()
    set(FOVEA_CUDA_RUNTIME CUDA::cudart_static)
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  endif()
  set_target_properties(fovea PROPERTIES CUDA_RUNTIME_LIBRARY ${CMAKE_CUDA_RUNTIME_LIBRARY})
  target_link_libraries(fovea PRIVATE ${FOVEA_CUDA_RUNTIME} CUDA::cublas)
endif()
# In a parent project without a build type, arithmetic without optimisation would be a trap: slow by a factor of ten.
if(NOT PROJECT_IS_TOP_LEVEL AND NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  target_compile_options(fovea PRIVATE -O2)
endif()

# Flags of our own targets: the library, tests, examples and benchmarks.
add_library(fovea_flags INTERFACE)
target_compile_options(fovea_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;$<$<BOOL:${FOVEA_WARNINGS_AS_ERRORS}>:-Werror>>
  $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra;$<$<BOOL:${FOVEA_WARNINGS_AS_ERRORS}>:-Werror=all-warnings>>)
if(FOVEA_SANITIZE)
  target_compile_options(fovea_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${FOVEA_SANITIZE};-fno-sanitize-recover=all;-fno-omit-frame-pointer>)
  target_link_options(fovea_flags INTERFACE -fsanitize=${FOVEA_SANITIZE})
  # stb hands memcpy a null pointer together with zero bytes, and in a damaged JPEG file it shifts the bits read ahead by 32 or more: wrong pixels, nothing worse.
  set_source_files_properties(tensor/image_file.cpp PROPERTIES COMPILE_OPTIONS "-fno-sanitize=nonnull-attribute,shift")
endif()
if(FOVEA_BUILD_FUZZERS)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "FOVEA_BUILD_FUZZERS needs clang (libFuzzer); configure with -DCMAKE_CXX_COMPILER=clang++")
  endif()
  target_compile_options(fovea_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()
target_link_libraries(fovea PRIVATE $<BUILD_INTERFACE:fovea_flags>)
