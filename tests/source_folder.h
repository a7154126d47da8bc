// Where the files lie that tests read: golden values, headers.
#pragma once

#include <cstdlib>
#include <string>

namespace fovea::testing {

// The source tree that the program was built from, or, where that lies elsewhere now, the folder that FOVEA_SOURCE_DIR names in the environment.
inline std::string source_folder() {
  const char* elsewhere = std::getenv("FOVEA_SOURCE_DIR");
  return elsewhere ? elsewhere : FOVEA_SOURCE_DIR;
}

}  // namespace fovea::testing
