// <fovea/fovea.h> brings everything: it compiles by itself, and names the public headers of the floors.
#include <fovea/fovea.h>

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "source_folder.h"

namespace fs = std::filesystem;

TEST_CASE("umbrella: every header of operations, layers and optimizers has its line") {
  const fs::path root = fovea::testing::source_folder();
  std::stringstream text;
  text << std::ifstream(root / "cmake" / "fovea.h").rdbuf();
  for (const char* folder : {"autograd", "layers", "optim"}) {
    for (const auto& entry : fs::directory_iterator(root / folder)) {
      if (entry.path().extension() != ".h") continue;
      const std::string line = "#include <fovea/" + std::string(folder) + "/" + entry.path().filename().string() + ">";
      CAPTURE(line);
      CHECK(text.str().find(line) != std::string::npos);
    }
  }
}

TEST_CASE("umbrella: one include is enough to train a net") {
  using namespace fovea;
  using namespace fovea::layers;
  Sequential net(Linear(2, 8), Tanh(), Linear(8, 1));
  const Tensor x = randn({4, 2});
  MSELoss()(net(x), sum(x, 1, true)).backward();
  CHECK(net.layer<Linear>("0").weight.grad().shape() == Shape{8, 2});
}
