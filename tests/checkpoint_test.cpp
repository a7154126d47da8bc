#include <doctest/doctest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <random>

#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/inplace.h>
#include <fovea/autograd/reduce.h>
#include <fovea/autograd/shape.h>
#include <fovea/data/loader.h>
#include <fovea/layers/container.h>
#include <fovea/layers/dropout.h>
#include <fovea/layers/linear.h>
#include <fovea/layers/norm.h>
#include <fovea/optim/checkpoint.h>
#include <fovea/optim/clip.h>
#include <fovea/optim/optimizers.h>
#include <fovea/optim/schedule.h>

#include "devices.h"
#include "file_cases.h"
#include "temporary_folder.h"

using namespace fovea;
using namespace fovea::optim;

namespace {

// Everything that has a state: weights, running averages, dropout's random numbers, moments, a schedule and a shuffling loader.
struct Run {
  layers::Sequential model{layers::Linear(12, 16), layers::BatchNorm1d(16), layers::Dropout(0.3), layers::Linear(16, 4)};
  AdamW optimizer{model.named_parameters(), {.lr = 1e-2}};
  Schedule schedule = sequence({{linear_warmup(1e-2, 4), 4}}, cosine(1e-2, 20));
  data::DataLoader loader;
  int64_t step = 0;

  static data::DatasetPtr dataset() {
    Tensor images = empty({20, 1, 3, 4}, {DType::uint8, Device::cpu()});
    for (int64_t i = 0; i < images.numel(); ++i) images.mutable_data<uint8_t>()[i] = static_cast<uint8_t>(i * 37 % 251);
    std::vector<int64_t> labels(20);
    for (size_t i = 0; i < labels.size(); ++i) labels[i] = static_cast<int64_t>(i % 4);
    return std::make_shared<data::ImageArray>(images, labels);
  }

  explicit Run(uint64_t seed) : loader(dataset(), {.batch_size = 6, .shuffle = true, .workers = 2, .seed = 3}) {
    manual_seed(seed);
    for (const auto& [name, parameter] : model.named_parameters()) {
      NoGrad no_grad;
      copy_(parameter, randn(parameter.shape()));
    }
  }

  void train(int steps) {
    for (int i = 0; i < steps; ++i) {
      std::optional<data::Batch> batch = loader.next();
      if (!batch) batch = loader.next();
      optimizer.set_lr(schedule(step++));
      optimizer.zero_grad();
      const Tensor y = model(flatten(testing::on_default_device(batch->images), 1));
      mean(y * y).backward();
      clip_grad_norm(optimizer.parameters(), 0.5);
      optimizer.step();
    }
  }

  void save(const std::string& path) const {
    save_checkpoint(path, model, optimizer, {.step = step, .position = {{"epoch", loader.position().epoch}, {"batch", loader.position().batch}}});
  }

  void load(const std::string& path) {
    const TrainingState state = load_checkpoint(path, model, optimizer);
    step = state.step;
    loader.seek({state.position.at("epoch"), state.position.at("batch")});
  }
};

NamedTensors snapshot(const Run& run) {
  NamedTensors all;
  for (const auto& [name, tensor] : layers::state_dict(run.model)) all.add(name, clone(tensor));
  for (const auto& [name, tensor] : run.optimizer.state()) all.add("optimizer." + name, clone(tensor));
  return all;
}

void check_identical_lists(const NamedTensors& a, const NamedTensors& b) {
  REQUIRE(a.size() == b.size());
  for (const auto& [name, tensor] : a) {
    const std::string label = name;
    CAPTURE(label);
    check_identical(b[name], tensor);
  }
}

struct Small {
  layers::Linear model{3, 2};
  SGD optimizer{model.named_parameters(), {.lr = 0.1, .momentum = 0.9}};
};

// In a process of its own, whose end says whether `body` returned true.
bool holds_in_child(const std::function<bool()>& body) {
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    bool result = false;
    try {
      result = body();
    } catch (...) {
    }
    _exit(result ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

void write_all(const std::string& path, const std::vector<uint8_t>& bytes) {
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

}  // namespace

TEST_CASE("checkpoint: a run cut off anywhere and resumed in fresh objects ends bit for bit where the whole run ends") {
  const TemporaryFolder folder;
  Run whole(1);
  whole.train(11);
  const NamedTensors expected = snapshot(whole);
  const Tensor next_draw = randn({5});
  for (const int at : {0, 1, 4, 7}) {                                // 4 batches an epoch: also at its end
    CAPTURE(at);
    {
      Run first(1);
      first.train(at);
      first.save(folder / "run");
    }
    Run second(99);
    second.load(folder / "run");
    second.train(11 - at);
    check_identical_lists(snapshot(second), expected);
    check_identical(randn({5}), next_draw);
  }
}

TEST_CASE("checkpoint: the user's texts, tensors and positions come back") {
  const TemporaryFolder folder;
  Small a;
  const TrainingState state{.step = -5, .position = {{"batch", int64_t{1} << 62}, {"", 0}}, .metadata = {{"alphabet", "aé\n"}, {"", ""}}, .tensors = {{"average", counting({2, 2}, DType::float64)}}};
  save_checkpoint(folder / "c", a.model, a.optimizer, state);
  const TrainingState loaded = load_checkpoint(folder / "c", a.model, a.optimizer);
  CHECK(loaded.step == -5);
  CHECK(loaded.position == state.position);
  CHECK(loaded.metadata == state.metadata);
  check_identical(loaded.tensors["average"], state.tensors["average"]);
}

TEST_CASE("checkpoint: a tensor that is not there is named") {
  const TemporaryFolder folder;
  layers::Linear model(2, 2);
  optim::Adam adam(model.named_parameters());
  CHECK_THROWS_WITH_AS(optim::save_checkpoint(folder / "c", model, adam, {.tensors = {{"mine", Tensor()}}}), "save_safetensors: \"user.mine\": the tensor is undefined", ValueError);
}

TEST_CASE("checkpoint: the random state comes back with all its bits") {
  const TemporaryFolder folder;
  Small a;
  default_generator().set_state(~uint64_t{0}, ~uint64_t{0} - 7);
  save_checkpoint(folder / "c", a.model, a.optimizer, {});
  manual_seed(0);
  load_checkpoint(folder / "c", a.model, a.optimizer);
  CHECK(default_generator().seed() == ~uint64_t{0});
  CHECK(default_generator().offset() == ~uint64_t{0} - 7);
}

TEST_CASE("checkpoint: a damaged file is refused, and model, optimizer and random state stay as they were") {
  const TemporaryFolder folder;
  Run run(1);
  run.train(2);
  run.save(folder / "good");
  const std::vector<uint8_t> good = read_file(folder / "good", "test");
  Run other(2);
  other.train(1);
  other.save(folder / "before");
  const NamedTensors before = snapshot(other);
  const uint64_t offset = default_generator().offset();
  for (size_t size = 0; size < good.size(); size += size < 64 ? 1 : 97) {
    write_all(folder / "cut", {good.begin(), good.begin() + static_cast<ptrdiff_t>(size)});
    CHECK_THROWS_AS(other.load(folder / "cut"), FileError);
  }
  int refused = 0;
  std::mt19937 random(1);
  for (int i = 0; i < 300; ++i) {                                    // bits of the header: the elements have no checksum
    std::vector<uint8_t> bad = good;
    bad[random() % 3000] ^= static_cast<uint8_t>(1 << random() % 8);
    write_all(folder / "bad", bad);
    try {
      load_checkpoint(folder / "bad", other.model, other.optimizer);
      load_checkpoint(folder / "before", other.model, other.optimizer);   // a change that does no harm, as in a text of the user's
    } catch (const Error&) {
      ++refused;
    }
  }
  CHECK(refused > 250);
  check_identical_lists(snapshot(other), before);
  CHECK(default_generator().offset() == offset);
}

TEST_CASE("checkpoint: what does not fit is named with path and reason, and nothing changes") {
  const TemporaryFolder folder;
  const std::string path = folder / "c";
  Small a;
  save_checkpoint(path, a.model, a.optimizer, {});
  const auto check_refused = [&](layers::Module& model, Optimizer& optimizer, const char* reason) {
    const std::vector<float> weight = model.named_parameters().begin()->second.to_vector<float>();
    const size_t entries = optimizer.state().size();
    default_generator().set_state(5, 6);
    CHECK_THROWS_WITH_AS(load_checkpoint(path, model, optimizer), doctest::Contains(reason), ValueError);
    CHECK_THROWS_WITH_AS(load_checkpoint(path, model, optimizer), doctest::Contains(path.c_str()), ValueError);
    CHECK(model.named_parameters().begin()->second.to_vector<float>() == weight);
    CHECK(optimizer.state().size() == entries);
    CHECK(default_generator().offset() == 6);
  };
  layers::Linear wider(4, 2), no_bias(3, 2, {.bias = false});
  SGD for_wider(wider.named_parameters(), {.momentum = 0.5}), for_no_bias(no_bias.named_parameters());
  check_refused(wider, for_wider, "\"weight\" is [2,3] where the module has [2,4]");
  CHECK(for_wider.state()["param_groups.default.momentum"].item() == 0.5);
  check_refused(no_bias, for_no_bias, "unexpected \"bias\"");
  Adam adam(a.model.named_parameters());
  check_refused(a.model, adam, "was saved by SGD, and this run has Adam");
  layers::Linear twice(3, 2);
  twice.to(DType::float64);
  SGD for_twice(twice.named_parameters());
  check_refused(twice, for_twice, "\"weight\" was saved as float32 where the model has float64");

  CHECK_THROWS_WITH_AS(load_checkpoint(folder / "none", a.model, a.optimizer), doctest::Contains("none: No such file"), FileError);
  save_safetensors(path, layers::state_dict(a.model));
  CHECK_THROWS_WITH_AS(load_checkpoint(path, a.model, a.optimizer), doctest::Contains("is a .safetensors file but not a checkpoint"), FileError);
  const auto with = [&](const Metadata& metadata, const NamedTensors& tensors = {}) {
    save_safetensors(path, tensors, metadata);
    return path;
  };
  const Metadata fine = {{"fovea.format", "checkpoint 1"}, {"fovea.step", "1"}, {"fovea.random_seed", "1"}, {"fovea.random_offset", "1"}};
  CHECK(read_checkpoint(with(fine)).state.step == 1);
  const auto changed = [&](const char* key, const char* value) {
    Metadata metadata = fine;
    metadata[key] = value;
    return metadata;
  };
  CHECK_THROWS_WITH_AS(read_checkpoint(with(changed("fovea.format", "checkpoint 2"))), doctest::Contains("this version reads \"checkpoint 1\""), FileError);
  CHECK_THROWS_WITH_AS(read_checkpoint(with(changed("fovea.step", "1x"))), doctest::Contains("\"fovea.step\" is \"1x\", expected an integer"), FileError);
  CHECK_THROWS_AS(read_checkpoint(with(changed("fovea.random_seed", "-1"))), FileError);
  CHECK_THROWS_AS(read_checkpoint(with(changed("fovea.position.batch", "99999999999999999999"))), FileError);
  CHECK_THROWS_WITH_AS(read_checkpoint(with({{"fovea.format", "checkpoint 1"}})), doctest::Contains("lacks \"fovea.step\""), FileError);
  CHECK_THROWS_WITH_AS(read_checkpoint(with(fine, {{"stray", zeros({1})}})), doctest::Contains("unexpected tensor \"stray\""), FileError);
}

TEST_CASE("checkpoint: kill -9 at any moment leaves a whole checkpoint, and the next save works" * testing::of_the_cpu()) {
  const TemporaryFolder folder;
  const std::string path = folder / "c";
  layers::Linear model(300, 100);
  SGD optimizer(model.named_parameters());
  const auto save = [&](int64_t step) {
    Tensor weight = model.weight;
    std::fill_n(weight.mutable_data<float>(), weight.numel(), static_cast<float>(step));
    save_checkpoint(path, model, optimizer, {.step = step});
  };
  save(0);
  std::mt19937 random(7);
  int64_t highest = 0;
  for (unsigned i = 0; i < 25 || (highest == 0 && i < 300); ++i) {      // longer and longer, as long as no save was fast enough
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      for (int64_t step = highest + 1;; ++step) save(step);
    }
    usleep(static_cast<useconds_t>(random() % (8000 + 1000 * i)));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    const Checkpoint checkpoint = read_checkpoint(path);
    CHECK(checkpoint.state.step >= highest);
    highest = checkpoint.state.step;
    CHECK(checkpoint.model["weight"].to_vector<float>() == std::vector<float>(30000, static_cast<float>(highest)));
  }
  CHECK(highest > 0);
  save(highest + 1);
  CHECK(read_checkpoint(path).state.step == highest + 1);
  CHECK(!std::filesystem::exists(path + ".partial"));
}

TEST_CASE("checkpoint: on a full disk saving is an error that says so, and the old checkpoint stays" * testing::of_the_cpu()) {
  const TemporaryFolder folder;
  const std::string path = folder / "c";
  layers::Linear model(100, 50);
  SGD optimizer(model.named_parameters());
  save_checkpoint(path, model, optimizer, {.step = 7});
  CHECK(holds_in_child([&] {
    signal(SIGXFSZ, SIG_IGN);                                        // so that writing fails, as it does on a full disk
    for (const rlim_t limit : {0, 1, 9, 500, 5000, 20000}) {
      const rlimit small{limit, RLIM_INFINITY};
      if (setrlimit(RLIMIT_FSIZE, &small) != 0) return false;
      try {
        save_checkpoint(path, model, optimizer, {.step = 8});
        return false;
      } catch (const FileError& error) {
        if (std::string(error.what()).find("make room") == std::string::npos) return false;
      }
      if (std::filesystem::exists(path + ".partial") || read_checkpoint(path).state.step != 7) return false;
    }
    return true;
  }));
  CHECK(read_checkpoint(path).state.step == 7);
}

TEST_CASE("checkpoint: a folder that cannot be written gives an error with the path") {
  const TemporaryFolder folder;
  Small a;
  write_all(folder / "file", {});
  CHECK_THROWS_WITH_AS(save_checkpoint(folder / "none/c", a.model, a.optimizer, {}), doctest::Contains("none/c: No such file or directory"), FileError);
  CHECK_THROWS_WITH_AS(save_checkpoint(folder / "file/c", a.model, a.optimizer, {}), doctest::Contains("file/c: Not a directory"), FileError);
  CHECK_THROWS_WITH_AS(save_checkpoint(folder.path(), a.model, a.optimizer, {}), doctest::Contains("is not a regular file"), FileError);
  const std::string closed = folder / "closed";
  std::filesystem::create_directory(closed);
  CHECK(holds_in_child([&] {
    std::filesystem::permissions(closed, std::filesystem::perms::owner_read | std::filesystem::perms::owner_exec);
    if (geteuid() == 0 && seteuid(65534) != 0) return true;          // root may write anywhere; become nobody, where that is allowed
    try {
      save_checkpoint(closed + "/c", a.model, a.optimizer, {});
      return false;
    } catch (const FileError& error) {
      return std::string(error.what()).find("Permission denied") != std::string::npos;
    }
  }));
}
