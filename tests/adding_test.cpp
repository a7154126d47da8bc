// What docs/adding.md promises: its recipes touch few files, the files are there, and no operation is declared without a row in the operation table.
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

#include "op_cases.h"
#include "source_folder.h"

namespace {

namespace fs = std::filesystem;
const fs::path root = fovea::testing::source_folder();

std::vector<std::string> lines_of(const fs::path& file) {
  std::vector<std::string> lines;
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// Declarations that are no operations: checks of arguments, how the tape is used, what draws numbers, and changes in place (each has tests of its own).
const std::set<std::string> headers_without_rows = {"arguments.h", "autocast.h", "backward.h", "tape.h", "gradcheck.h", "inplace.h", "random.h", "indexing.h"};
// Tested where their family is: results whose shape depends on values (nothing for meta tensors), helpers of gradients, and what other rows run through.
const std::set<std::string> without_rows = {"masked_select", "nonzero", "conv2d_backward_data", "conv2d_backward_weight",
                                            "max_pool2d_with_indices", "lstm_cell", "gru_cell", "rnn_cell"};

}  // namespace

TEST_CASE("the recipes of docs/adding.md touch few files, and these exist") {
  const std::map<std::string, size_t> most = {{"An elementwise operation", 5}, {"A fused operation with its own kernel", 8}, {"A layer", 4}};
  std::map<std::string, std::vector<std::string>> files;
  std::string heading;
  for (const std::string& line : lines_of(root / "docs/adding.md")) {
    if (line.starts_with("## ")) heading = line.substr(3);
    if (line.starts_with("| `")) files[heading].push_back(line.substr(3, line.find('`', 3) - 3));
  }
  CHECK(files.size() == most.size());
  for (const auto& entry : most) {                 // no structured binding: clang 14 lets no lambda, so no INFO, capture one
    const std::string& recipe = entry.first;
    const size_t limit = entry.second;
    INFO(recipe);
    CHECK(files[recipe].size() >= 3);
    CHECK(files[recipe].size() <= limit);
    for (const std::string& file : files[recipe]) {
      INFO(file);
      CHECK(fs::exists(root / file));
    }
  }
}

TEST_CASE("every operation of autograd's headers has a row in op_cases.h") {
  std::set<std::string> rows;
  for (const fovea::op_cases::Operation& row : fovea::op_cases::operations()) rows.insert(row.name.substr(0, row.name.find('/')));
  const std::regex declaration(R"(^(?:Tensor|Extremes|Ordered|PooledMaxima|RnnResult|std::vector<Tensor>) (\w+)\(.*)");
  size_t declared = 0;
  for (const auto& entry : fs::directory_iterator(root / "autograd")) {
    const std::string file = entry.path().filename().string();
    if (entry.path().extension() != ".h" || headers_without_rows.count(file)) continue;
    bool is_detail = false;
    for (const std::string& line : lines_of(entry.path())) {
      if (line.starts_with("namespace detail")) is_detail = true;
      std::smatch match;
      if (is_detail || !std::regex_match(line, match, declaration) || match[1].str().starts_with("operator") || without_rows.count(match[1])) continue;
      ++declared;
      INFO("autograd/", file, ": ", match[1].str());
      const bool has_row = rows.count(match[1]) > 0;
      CHECK(has_row);
    }
  }
  CHECK(declared > 100);
}
