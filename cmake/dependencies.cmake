# Everything here is needed to build; nothing of it is needed by a program that uses the installed library, but the threads.
find_package(Threads REQUIRED)

find_path(FOVEA_HIGHWAY_INCLUDE hwy/highway.h)
if(NOT FOVEA_HIGHWAY_INCLUDE)
  message(FATAL_ERROR "Highway (hwy/highway.h) was not found; on Debian or Ubuntu: apt-get install libhwy-dev")
endif()
file(STRINGS ${FOVEA_HIGHWAY_INCLUDE}/hwy/base.h FOVEA_HIGHWAY_VERSION REGEX "#define HWY_(MAJOR|MINOR|PATCH) ")
if(NOT FOVEA_HIGHWAY_VERSION)
  file(STRINGS ${FOVEA_HIGHWAY_INCLUDE}/hwy/highway.h FOVEA_HIGHWAY_VERSION REGEX "#define HWY_(MAJOR|MINOR|PATCH) ")
endif()
string(REGEX REPLACE "[^0-9;]" "" FOVEA_HIGHWAY_VERSION "${FOVEA_HIGHWAY_VERSION}")
string(REPLACE ";" "." FOVEA_HIGHWAY_VERSION "${FOVEA_HIGHWAY_VERSION}")

find_path(FOVEA_STB_INCLUDE stb_image.h PATH_SUFFIXES stb)
if(NOT FOVEA_STB_INCLUDE)
  message(FATAL_ERROR "stb (stb_image.h) was not found; on Debian or Ubuntu: apt-get install libstb-dev")
endif()
