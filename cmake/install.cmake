# `cmake --install`: the library, its public headers, a CMake package and a pkg-config file. All of it may be moved to another place afterwards.
include(CMakePackageConfigHelpers)

install(TARGETS fovea EXPORT fovea-targets)

# Public headers keep their folders. kernels/cpu holds what only our own kernels include, but for the number of threads, and kernels/cuda
# but for the runtime, the allocator, graphs and ranges.
foreach(folder ${FOVEA_HEADER_FOLDERS})
  if(EXISTS ${PROJECT_SOURCE_DIR}/${folder})
    install(DIRECTORY ${PROJECT_SOURCE_DIR}/${folder}/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/fovea/${folder}
      FILES_MATCHING PATTERN "*.h" PATTERN "cpu" EXCLUDE PATTERN "cuda" EXCLUDE)
  endif()
endforeach()
install(FILES ${PROJECT_SOURCE_DIR}/kernels/cpu/parallel.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/fovea/kernels/cpu)
install(FILES ${PROJECT_SOURCE_DIR}/kernels/cuda/runtime.h ${PROJECT_SOURCE_DIR}/kernels/cuda/allocator.h ${PROJECT_SOURCE_DIR}/kernels/cuda/graph.h
  ${PROJECT_SOURCE_DIR}/kernels/cuda/nvtx.h
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/fovea/kernels/cuda)
install(FILES ${PROJECT_SOURCE_DIR}/cmake/fovea.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/fovea)
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

# --- find_package(fovea) ---
# A static library leaves its threads to the program that links it, so the package looks for them; a shared one carries them with it.
get_target_property(library_type fovea TYPE)
set(FOVEA_NEEDS_THREADS OFF)
if(library_type STREQUAL "STATIC_LIBRARY")
  set(FOVEA_NEEDS_THREADS ON)
endif()
set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/fovea)
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/fovea-config.cmake.in ${PROJECT_BINARY_DIR}/fovea-config.cmake
  INSTALL_DESTINATION ${package_folder})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/fovea-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/fovea-config.cmake ${PROJECT_BINARY_DIR}/fovea-config-version.cmake DESTINATION ${package_folder})
install(EXPORT fovea-targets NAMESPACE fovea:: DESTINATION ${package_folder})

# --- pkg-config ---
set(FOVEA_PC_LIBS_PRIVATE "${CMAKE_THREAD_LIBS_INIT}")
string(STRIP "${FOVEA_PC_LIBS_PRIVATE}" FOVEA_PC_LIBS_PRIVATE)
set(FOVEA_PC_LIBS "-L\${libdir} -lfovea")
if(library_type STREQUAL "STATIC_LIBRARY")        # where there is only a static library, it must link without --static too
  string(APPEND FOVEA_PC_LIBS " ${FOVEA_PC_LIBS_PRIVATE}")
  set(FOVEA_PC_LIBS_PRIVATE "")
endif()
set(pc_folder ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
file(RELATIVE_PATH FOVEA_PC_PREFIX ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
string(REGEX REPLACE "/$" "" FOVEA_PC_PREFIX "${FOVEA_PC_PREFIX}")
file(RELATIVE_PATH FOVEA_PC_LIBDIR ${CMAKE_INSTALL_PREFIX} ${CMAKE_INSTALL_FULL_LIBDIR})
file(RELATIVE_PATH FOVEA_PC_INCLUDEDIR ${CMAKE_INSTALL_PREFIX} ${CMAKE_INSTALL_FULL_INCLUDEDIR})
configure_file(${PROJECT_SOURCE_DIR}/cmake/fovea.pc.in ${PROJECT_BINARY_DIR}/fovea.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/fovea.pc DESTINATION ${pc_folder})
