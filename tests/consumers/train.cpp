// Five lines that train a two-layer net: built against the installed library by tests/install_consumers.sh, in each of the three ways.
#include <cstdio>

#include <fovea/fovea.h>

using namespace fovea;

int main() {
  manual_seed(1);
  layers::Sequential net(layers::Linear(2, 16), layers::Tanh(), layers::Linear(16, 1));
  optim::Adam adam(net.named_parameters(), {.lr = 0.05});
  const Tensor x = tensor({{0, 0}, {0, 1}, {1, 0}, {1, 1}}), y = reshape(tensor({0, 1, 1, 0}), {4, 1});
  double loss = 0;
  for (int step = 0; step < 300; ++step) {
    adam.zero_grad();
    const Tensor l = layers::MSELoss()(net(x), y);
    l.backward();
    adam.step();
    loss = l.item();
  }
  std::printf("loss of exclusive or after 300 steps: %.6f\n", loss);
  return loss < 0.01 ? 0 : 1;
}
