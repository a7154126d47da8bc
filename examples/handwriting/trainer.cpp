#include "trainer.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <limits>

#include "report.h"

using namespace fovea;

namespace {

std::atomic<bool> is_stop_wanted{false};

// Ctrl-C asks the loop to stop after its step; a second one ends the program at once.
void on_interrupt(int) {
  is_stop_wanted = true;
  std::signal(SIGINT, SIG_DFL);
}

constexpr int64_t default_epochs = 60;                      // over a folder's lines

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::string minutes(double seconds) {
  char text[32];
  const auto whole = static_cast<long long>(seconds);
  std::snprintf(text, sizeof text, "%lld:%02lld", whole / 60, whole % 60);
  return text;
}

// How one hand's lines may differ from what was seen of it: after prepare(), so ink is 1 and what comes from outside is paper, 0.
data::Transform distort_line() {
  return data::compose({data::random_warp({.shift_y = 1.5f, .rotation = 0.015f, .scale = 0.08f, .stretch = 0.15f, .slant = 0.25f, .elastic = 0.8f, .fill = 0.0f, .keep_width = false}),
                        data::random_photometry({.blur = 0.6f, .contrast = 0.2f, .gamma = 0.25f, .noise = 0.04f})});
}

data::Transform training_transform(const TrainingOptions& o, const data::Alphabet& alphabet) {
  std::vector<data::Transform> steps{prepare(o.network)};
  if (!o.lines.folder.empty()) steps.push_back(distort_line());
  steps.push_back(data::encode_text(alphabet));
  return data::compose(std::move(steps));
}

constexpr double not_measured = std::numeric_limits<double>::quiet_NaN();

// A line needs a step for each character, and one more between two that are equal.
bool has_room(const int64_t* target, int64_t length, int64_t steps) {
  for (int64_t i = 0; i < length; ++i) steps -= i > 0 && target[i] == target[i - 1] ? 2 : 1;
  return steps >= 0;
}

int64_t lines_with_room(const data::Batch& batch, const Tensor& steps) {
  const std::vector<int64_t> lengths = batch.target_lengths.to_vector<int64_t>(), rooms = steps.to_vector<int64_t>();
  int64_t count = 0;
  for (int64_t i = 0; i < batch.size(); ++i)
    count += has_room(batch.targets.data<int64_t>() + i * batch.targets.size(1), lengths[static_cast<size_t>(i)], rooms[static_cast<size_t>(i)]);
  return count;
}

class Trainer {
 public:
  Trainer(const TrainingOptions& options, Lines lines)
      : options_(options),
        lines_(std::move(lines)),
        model_(options.network, lines_.alphabet),
        optimizer_(model_.network->named_parameters(), {.lr = options.lr, .weight_decay = options.weight_decay}),
        schedule_(optim::sequence({{optim::linear_warmup(options.lr, warmup_steps), warmup_steps}},
                                  optim::cosine(options.lr, std::max<int64_t>(options.steps - warmup_steps, 1), options.lr * 0.01))),
        loader_(lines_.training, {.batch_size = options.batch_size, .shuffle = !options.lines.folder.empty(), .drop_last = true, .workers = 1, .bucket_batches = 8,
                                  .width_multiple = 4, .seed = options.lines.seed, .transform = training_transform(options, lines_.alphabet)}) {
    model_.network->to(options.device);                      // weights are drawn on the CPU: the same for every device
    model_.run = lines_.run;
    model_.run["batch"] = std::to_string(options.batch_size);
    model_.run["steps"] = std::to_string(options.steps);
    model_.run["lr"] = exact_text(options.lr);
    model_.run["dropout"] = exact_text(options.network.dropout);
  }

  int run() {
    if (options_.resume) resume();
    const auto start = Clock::now();
    const int64_t first_step = step_;
    while (step_ < options_.steps && !is_stop_wanted) {
      train_step();
      const bool is_last = step_ == options_.steps;
      const double elapsed = seconds_since(start), per_step = elapsed / static_cast<double>(step_ - first_step);
      if (step_ % options_.evaluate_every == 0 || is_last) measure();
      if (step_ % report_every == 0 || is_last) report(static_cast<double>(options_.batch_size) / per_step, per_step * static_cast<double>(options_.steps - step_), is_last);
      if (step_ % options_.evaluate_every == 0 && !is_last) save_checkpoint();
    }
    if (step_ < options_.steps) {                            // Ctrl-C
      save_checkpoint();
      std::cout << "\nStopped after step " << step_ << "; go on with --resume.\n";
      return 130;
    }
    finish();
    return 0;
  }

 private:
  static constexpr int64_t warmup_steps = 200, report_every = 20;

  data::Batch next_batch() {
    for (int i = 0; i < 2; ++i)                              // the end of an epoch is told once; train() has seen to it that an epoch has batches
      if (auto batch = loader_.next()) return std::move(*batch);
    fail<ValueError>("a whole pass over the lines gave no batch of ", options_.batch_size, "; use a smaller --batch");
  }

  void train_step() {
    const data::Batch batch = next_batch();
    const Tensor steps = steps_of(batch.widths), own_steps = to(steps, options_.device);
    const Tensor logits = model_.network->forward(to(batch.images, options_.device), own_steps);
    // A line that is too narrow for its text has an infinite loss; it counts as zero and teaches nothing, so that the mean is that of the others.
    const Tensor loss = ctc_loss(logits, to(batch.targets, options_.device), own_steps, to(batch.target_lengths, options_.device), {.zero_infinity = true});
    check_sound(std::isfinite(loss.item()), "the loss");
    optimizer_.zero_grad();
    loss.backward();
    check_sound(std::isfinite(optim::clip_grad_norm(optimizer_.parameters(), 5.0)), "the gradient");
    lr_ = schedule_(step_);
    optimizer_.set_lr(lr_);
    optimizer_.step();
    ++step_;
    const int64_t learned = lines_with_room(batch, steps);
    loss_sum_ += loss.item() * static_cast<double>(batch.size());
    loss_count_ += learned;
    narrow_count_ += batch.size() - learned;
    if (step_ % 5 == 0) count_mistakes(logits.detach(), own_steps, batch);
  }

  void count_mistakes(const Tensor& logits, const Tensor& steps, const data::Batch& batch) {
    NoGrad no_grad;
    const std::vector<Reading> readings = read_logits(logits, steps, model_.alphabet);
    for (size_t i = 0; i < readings.size(); ++i) mistakes_ += data::character_errors(batch.texts[i], readings[i].text);
  }

  // Nothing is written after a step that has no numbers: the files are those of before.
  void check_sound(bool is_sound, const std::string& what) const {
    check<ValueError>(is_sound, what, " became infinite or no number (NaN) after ", step_, " of ", options_.steps, " steps: the training diverged. ",
                      "Use a lower --lr than ", exact_text(options_.lr), ", and begin again without --resume; nothing was written since the last checkpoint");
  }

  void check_weights() const {
    for (const auto& [name, tensor] : layers::state_dict(*model_.network)) check_sound(all(isfinite(tensor)).item() != 0, name);
  }

  void measure() {
    try {
      evaluation_ = evaluate(model_, lines_.held_out, options_.batch_size);
    } catch (const ValueError&) {
      check_sound(false, "the network's answers");
    }
  }

  void report(double lines_per_second, double seconds_left, bool is_last) {
    check<ValueError>(loss_count_ > 0, "no line since the last report is wide enough for its text, so nothing was learned: a character needs 4 pixels ",
                      "of width at a height of ", options_.network.height, "; check the texts, or use a greater --height");
    HistoryRow row{step_, loss_sum_ / static_cast<double>(loss_count_), mistakes_.rate(), not_measured, lr_, lines_per_second};
    const bool is_measured = !evaluation_.readings.empty();
    if (is_measured) row.held_out_cer = last_cer_ = evaluation_.characters.rate();
    history_.push_back(row);
    loss_sum_ = 0;
    loss_count_ = 0;
    mistakes_ = {};
    if (!is_last) evaluation_ = {};
    char text[300];
    std::snprintf(text, sizeof text, "step %lld/%lld  loss %.3f  CER %s (held out %s)  lr %.2e  %.0f lines/s  %s left", static_cast<long long>(step_),
                  static_cast<long long>(options_.steps), row.loss, percent(row.training_cer, 1).c_str(), percent(last_cer_).c_str(), lr_, lines_per_second,
                  minutes(seconds_left).c_str());
    // One line that renews itself on a terminal; elsewhere a line for each measurement.
    if (isatty(STDOUT_FILENO)) std::cout << "\r\033[K" << text << (is_last ? "\n" : "") << std::flush;
    else if (is_measured || is_last) std::cout << text << std::endl;
  }

  std::string checkpoint_path() const { return options_.out + "/checkpoint.safetensors"; }
  // What the report of the steps since the last one needs is kept too, so that a resumed run writes the same history.
  void save_checkpoint() const {
    check_weights();
    std::vector<double> rows;
    for (const HistoryRow& r : history_) rows.insert(rows.end(), {static_cast<double>(r.step), r.loss, r.training_cer, r.held_out_cer, r.lr, r.lines_per_second});
    const data::LoaderPosition at = loader_.position();
    optim::save_checkpoint(checkpoint_path(), *model_.network, optimizer_,
                           {.step = step_,
                            .position = {{"epoch", at.epoch}, {"batch", at.batch}, {"loss_count", loss_count_}, {"narrow", narrow_count_},
                                         {"edits", mistakes_.edits}, {"length", mistakes_.length}},
                            .metadata = describe(model_),
                            .tensors = {{"history", from_vector(rows, {static_cast<int64_t>(history_.size()), 6})},
                                        {"running", from_vector(std::vector<double>{loss_sum_, last_cer_})}}});
  }

  void resume() {
    const std::string path = checkpoint_path();
    check<FileError>(std::filesystem::exists(path), path, ": there is no checkpoint to resume from");
    const std::string difference = differences(optim::read_checkpoint(path).state.metadata, describe(model_));
    check<FileError>(difference.empty(), path, ": comes from another run: ", difference, "; give the options of the run it comes from, or another --out");
    const optim::TrainingState state = optim::load_checkpoint(path, *model_.network, optimizer_);
    const auto at = [&](const char* name) {
      const auto found = state.position.find(name);
      check<FileError>(found != state.position.end(), path, ": does not say \"", name, "\"");
      return found->second;
    };
    step_ = state.step;
    check<FileError>(step_ >= 0 && step_ <= options_.steps, path, ": was saved after step ", step_, ", but --steps is ", options_.steps);
    loss_count_ = at("loss_count");
    narrow_count_ = at("narrow");
    mistakes_ = {at("edits"), at("length")};
    loader_.seek({at("epoch"), at("batch")});
    const std::vector<double> running = state.tensors["running"].to_vector<double>(), rows = state.tensors["history"].to_vector<double>();
    check<FileError>(running.size() == 2 && rows.size() % 6 == 0, path, ": its history is damaged");
    loss_sum_ = running[0];
    last_cer_ = running[1];
    for (size_t i = 0; i < rows.size(); i += 6)
      history_.push_back({static_cast<int64_t>(rows[i]), rows[i + 1], rows[i + 2], rows[i + 3], rows[i + 4], rows[i + 5]});
    std::cout << "going on after step " << step_ << "\n";
  }

  void finish() {
    const std::string& out = options_.out;
    if (evaluation_.readings.empty()) measure();             // a finished run that is resumed
    save_checkpoint();
    save_model(out + "/model.safetensors", model_);
    print_predictions(lines_.held_out, evaluation_.readings, 12);
    std::cout << "held-out lines: CER " << percent(evaluation_.characters.rate()) << ", WER " << percent(evaluation_.words.rate()) << " over " << lines_.held_out->size()
              << " lines" << std::endl;
    if (narrow_count_ > 0)
      std::cout << "warning: " << narrow_count_ << " of the " << step_ * options_.batch_size << " lines seen were too narrow for their texts (4 pixels a character "
                << "at a height of " << options_.network.height << ") and taught nothing; check them, or use a greater --height\n";
    write_history_csv(out + "/history.csv", history_);
    draw_history(out + "/history.png", history_);
    draw_predictions(out + "/predictions.png", lines_.held_out, evaluation_.readings, 12);
    std::cout << "written: " << out << "/model.safetensors, checkpoint.safetensors, history.csv, history.png, predictions.png\n";
  }

  TrainingOptions options_;
  Lines lines_;
  Model model_;
  optim::AdamW optimizer_;
  optim::Schedule schedule_;
  data::DataLoader loader_;
  std::vector<HistoryRow> history_;
  Evaluation evaluation_;
  data::ErrorRate mistakes_;
  int64_t step_ = 0, narrow_count_ = 0;                      // narrow_count_: lines of the whole run that had no room for their texts
  int64_t loss_count_ = 0;                                   // lines that loss_sum_ is the sum of
  double loss_sum_ = 0, lr_ = 0, last_cer_ = not_measured;
};

}  // namespace

int train(TrainingOptions options) {
  make_output_folder(options.out);
  manual_seed(options.lines.seed);
  Lines lines = choose_lines(options.lines, options.network.height, options.steps * options.batch_size);
  const int64_t count = lines.training->size();
  check<ValueError>(options.batch_size <= count, "--batch ", options.batch_size, " is more than the ", count, " lines there are to train on; use --batch ",
                    count, " or less");
  if (options.steps == 0) options.steps = default_epochs * count / options.batch_size;
  std::cout << lines.description << "\n";
  Trainer trainer(options, std::move(lines));
  std::signal(SIGINT, on_interrupt);
  return trainer.run();
}
