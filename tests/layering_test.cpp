// The house's floors, checked on the sources themselves: a file includes only what stands in its own folder or below it, and a public header needs
// nothing but the standard library.
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "source_folder.h"

namespace {

namespace fs = std::filesystem;

const fs::path root = fovea::testing::source_folder();

// Folders that stand on the same floor do not include each other, but for the pairs allowed below.
const std::map<std::string, int> floors = {{"kernels", 0}, {"tensor", 1}, {"autograd", 2}, {"layers", 3}, {"optim", 4},
                                           {"data", 4},    {"viz", 4},    {"parallel", 4}, {"examples", 5}};

bool may_include(const std::string& from, const std::string& to) {
  return from == to || floors.at(to) < floors.at(from) || (from == "viz" && to == "optim");
}

struct Include {
  std::string file, line, target;                // file: relative to the root; target: what stands between <> or ""
  bool is_quoted;
};

std::vector<fs::path> sources_of(const std::string& folder) {
  std::vector<fs::path> files;
  if (!fs::exists(root / folder)) return files;
  for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
    const std::string extension = entry.path().extension().string();
    if (extension == ".h" || extension == ".cpp" || extension == ".cu" || extension == ".cuh") files.push_back(fs::relative(entry.path(), root));
  }
  return files;
}

std::vector<Include> includes_of(const fs::path& file) {
  std::vector<Include> found;
  std::ifstream in(root / file);
  for (std::string line; std::getline(in, line);) {
    const size_t hash = line.find_first_not_of(" \t");
    if (hash == std::string::npos || line[hash] != '#') continue;
    const size_t word = line.find_first_not_of(" \t", hash + 1);
    if (word == std::string::npos || line.compare(word, 7, "include") != 0) continue;
    const size_t open = line.find_first_of("<\"", word);
    if (open == std::string::npos) continue;
    const size_t close = line.find_first_of(">\"", open + 1);
    found.push_back({file.generic_string(), line, line.substr(open + 1, close - open - 1), line[open] == '"'});
  }
  return found;
}

// Installed for users: every header but what only our own kernels include (see cmake/install.cmake).
bool is_public(const std::string& header) {
  for (const char* name : {"kernels/cpu/parallel.h", "kernels/cuda/allocator.h", "kernels/cuda/graph.h", "kernels/cuda/nvtx.h", "kernels/cuda/runtime.h"})
    if (header == name) return true;
  return header.ends_with(".h") && !header.starts_with("kernels/cpu/") && !header.starts_with("kernels/cuda/") && !header.starts_with("examples/");
}

std::string folder_of(const std::string& path) { return path.substr(0, path.find('/')); }

}  // namespace

TEST_CASE("no file includes a higher floor, or a neighbour on its own") {
  int seen = 0;
  for (const auto& [folder, floor] : floors) {
    for (const fs::path& file : sources_of(folder)) {
      for (const Include& include : includes_of(file)) {
        INFO(include.file, ": ", include.line);
        if (include.is_quoted) {
          // A program's own headers are no part of the library: they are found beside the file.
          const bool is_beside = folder == "examples" && fs::exists((root / file).parent_path() / include.target);
          CHECK_MESSAGE(is_beside, "our own headers are included as <fovea/folder/file.h>");
          continue;
        }
        if (!include.target.starts_with("fovea/")) continue;
        ++seen;
        const std::string target = include.target.substr(6);
        if (target == "fovea.h") {
          CHECK_MESSAGE(folder == "examples", "the umbrella is for programs");
          continue;
        }
        CHECK(fs::exists(root / target));
        REQUIRE(floors.count(folder_of(target)) == 1);
        CHECK(may_include(folder, folder_of(target)));
      }
    }
  }
  CHECK(seen > 20);                              // the walk found the sources at all
}

TEST_CASE("a public header includes only public headers and the standard library") {
  int seen = 0;
  std::vector<fs::path> headers;
  for (const auto& [folder, floor] : floors)
    for (const fs::path& file : sources_of(folder))
      if (is_public(file.generic_string())) headers.push_back(file);
  headers.push_back("cmake/fovea.h");              // the umbrella
  for (const fs::path& file : headers) {
    for (const Include& include : includes_of(file)) {
      ++seen;
      INFO(include.file, ": ", include.line);
      if (include.target.starts_with("fovea/")) CHECK(is_public(include.target.substr(6)));
      else CHECK_MESSAGE(include.target.find_first_of("/.") == std::string::npos, "neither a third party's header nor the system's");
    }
  }
  CHECK(seen > 20);
}
