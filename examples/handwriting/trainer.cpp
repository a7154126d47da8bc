#include "trainer.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <set>

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
  std::snprintf(text, sizeof text, "%d:%02d", static_cast<int>(seconds) / 60, static_cast<int>(seconds) % 60);
  return text;
}

struct Lines {
  data::DatasetPtr training, held_out;
  data::Alphabet alphabet;
  std::string description;
};

Lines drawn_lines(const TrainingOptions& o) {
  const data::SyntheticHandwritingOptions drawing{.height = o.network.height};
  // One stream, cut in two: the held-out lines come first and are never trained on.
  return {std::make_shared<data::SyntheticLines>(drawing, o.seed, o.steps * o.batch_size, o.held_out),
          std::make_shared<data::SyntheticLines>(drawing, o.seed, o.held_out), data::Alphabet(data::handwriting_characters()),
          str("drawn lines, an endless stream; ", o.held_out, " held out")};
}

// Split by what must not be in both parts: the hand that wrote it, or the page where all is in one hand.
Lines folder_lines(const TrainingOptions& o) {
  check<ValueError>(o.split_by == "auto" || o.split_by == "page" || o.split_by == "hand", "option --split takes page, hand or auto, got \"", o.split_by, "\"");
  const data::LineFolder all(o.data);
  std::set<std::string> hands;
  for (int64_t i = 0; i < all.size(); ++i) hands.insert(all.record(i).hand);
  const bool by_hand = o.split_by == "hand" || (o.split_by == "auto" && hands.size() > 1);
  const data::DatasetPtr lines = std::make_shared<data::LineFolder>(o.data, by_hand ? data::LineGroup::hand : data::LineGroup::page);
  const data::Split split = data::split_by_group(lines, o.held_out_fraction, o.seed);
  return {split.training, split.held_out, all.alphabet(),
          str(lines->size(), " lines of ", o.data, ", split by ", by_hand ? "hand" : "page", ": ", split.training->size(), " to train on, ", split.held_out->size(), " held out")};
}

Lines lines_of(const TrainingOptions& o) { return o.data.empty() ? drawn_lines(o) : folder_lines(o); }

// How one hand's lines may differ from what was seen of it: after prepare(), so ink is 1 and what comes from outside is paper, 0.
data::Transform distort_line() {
  return data::compose({data::random_warp({.shift_y = 1.5f, .rotation = 0.015f, .scale = 0.08f, .stretch = 0.15f, .slant = 0.25f, .elastic = 0.8f, .fill = 0.0f, .keep_width = false}),
                        data::random_photometry({.blur = 0.6f, .contrast = 0.2f, .gamma = 0.25f, .noise = 0.04f})});
}

data::Transform training_transform(const TrainingOptions& o, const data::Alphabet& alphabet) {
  std::vector<data::Transform> steps{prepare(o.network.height)};
  if (!o.data.empty()) steps.push_back(distort_line());
  steps.push_back(data::encode_text(alphabet));
  return data::compose(std::move(steps));
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
        loader_(lines_.training, {.batch_size = options.batch_size, .shuffle = !options.data.empty(), .drop_last = true, .workers = 1, .bucket_batches = 8,
                                  .width_multiple = 4, .seed = options.seed, .transform = training_transform(options, lines_.alphabet)}) {}

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
      if (step_ % options_.evaluate_every == 0) save_checkpoint();
    }
    if (is_stop_wanted) {
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
    while (true)
      if (auto batch = loader_.next()) return std::move(*batch);
  }

  void train_step() {
    const data::Batch batch = next_batch();
    const Tensor steps = steps_of(batch.widths);
    const Tensor logits = model_.network->forward(batch.images, steps);
    // A line that is too narrow for its text has an infinite loss; it counts as zero and teaches nothing.
    const Tensor loss = ctc_loss(logits, batch.targets, steps, batch.target_lengths, {.zero_infinity = true});
    optimizer_.zero_grad();
    loss.backward();
    optim::clip_grad_norm(optimizer_.parameters(), 5.0);
    lr_ = schedule_(step_);
    optimizer_.set_lr(lr_);
    optimizer_.step();
    ++step_;
    loss_sum_ += loss.item();
    ++loss_count_;
    if (step_ % 5 == 0) count_mistakes(logits.detach(), steps, batch);
  }

  void count_mistakes(const Tensor& logits, const Tensor& steps, const data::Batch& batch) {
    NoGrad no_grad;
    const std::vector<Reading> readings = read_logits(logits, steps, model_.alphabet);
    for (size_t i = 0; i < readings.size(); ++i) mistakes_ += data::character_errors(batch.texts[i], readings[i].text);
  }

  void measure() { evaluation_ = evaluate(model_, lines_.held_out, options_.batch_size); }

  void report(double lines_per_second, double seconds_left, bool is_last) {
    HistoryRow row{step_, loss_sum_ / static_cast<double>(loss_count_), mistakes_.rate(), -1, lr_, lines_per_second};
    const bool is_measured = !evaluation_.readings.empty();
    if (is_measured) row.held_out_cer = last_cer_ = evaluation_.characters.rate();
    history_.push_back(row);
    loss_sum_ = 0;
    loss_count_ = 0;
    mistakes_ = {};
    if (!is_last) evaluation_ = {};
    char text[200];
    std::snprintf(text, sizeof text, "step %lld/%lld  loss %.3f  CER %.1f %% (held out %s)  lr %.2e  %.0f lines/s  %s left", static_cast<long long>(step_),
                  static_cast<long long>(options_.steps), row.loss, 100 * row.training_cer, last_cer_ < 0 ? "-" : percent(last_cer_).c_str(), lr_, lines_per_second,
                  minutes(seconds_left).c_str());
    // One line that renews itself on a terminal; elsewhere a line for each measurement.
    if (isatty(STDOUT_FILENO)) std::cout << "\r\033[K" << text << (is_last ? "\n" : "") << std::flush;
    else if (is_measured || is_last) std::cout << text << std::endl;
  }

  static std::string percent(double rate) {
    char text[32];
    std::snprintf(text, sizeof text, "%.2f %%", 100 * rate);
    return text;
  }

  std::string checkpoint_path() const { return options_.out + "/checkpoint.safetensors"; }
  // What the report of the steps since the last one needs is kept too, so that a resumed run writes the same history.
  void save_checkpoint() const {
    std::vector<double> rows;
    for (const HistoryRow& r : history_) rows.insert(rows.end(), {static_cast<double>(r.step), r.loss, r.training_cer, r.held_out_cer, r.lr, r.lines_per_second});
    const data::LoaderPosition at = loader_.position();
    optim::save_checkpoint(checkpoint_path(), *model_.network, optimizer_,
                           {.step = step_,
                            .position = {{"epoch", at.epoch}, {"batch", at.batch}, {"loss_count", loss_count_}, {"edits", mistakes_.edits}, {"length", mistakes_.length}},
                            .metadata = describe(model_),
                            .tensors = {{"history", from_vector(rows, {static_cast<int64_t>(history_.size()), 6})},
                                        {"running", from_vector(std::vector<double>{loss_sum_, last_cer_})}}});
  }

  void resume() {
    const std::string path = checkpoint_path();
    check<FileError>(std::filesystem::exists(path), path, ": there is no checkpoint to resume from");
    check<FileError>(optim::read_checkpoint(path).state.metadata == describe(model_), path,
                     ": was written for another network or alphabet; give the options of the run it comes from");
    const optim::TrainingState state = optim::load_checkpoint(path, *model_.network, optimizer_);
    const auto at = [&](const char* name) {
      const auto found = state.position.find(name);
      check<FileError>(found != state.position.end(), path, ": does not say \"", name, "\"");
      return found->second;
    };
    step_ = state.step;
    loss_count_ = at("loss_count");
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
    save_model(out + "/model.safetensors", model_);
    write_history_csv(out + "/history.csv", history_);
    draw_history(out + "/history.png", history_);
    draw_predictions(out + "/predictions.png", lines_.held_out, evaluation_.readings, 12);
    print_predictions(lines_.held_out, evaluation_.readings, 12);
    std::cout << "held-out lines: CER " << percent(evaluation_.characters.rate()) << ", WER " << percent(evaluation_.words.rate()) << " over " << lines_.held_out->size()
              << " lines\nwritten: " << out << "/model.safetensors, history.csv, history.png, predictions.png\n";
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
  int64_t step_ = 0, loss_count_ = 0;
  double loss_sum_ = 0, lr_ = 0, last_cer_ = -1;
};

}  // namespace

data::DatasetPtr held_out_lines(const TrainingOptions& options) { return lines_of(options).held_out; }

int train(TrainingOptions options) {
  make_output_folder(options.out);
  manual_seed(options.seed);
  Lines lines = lines_of(options);
  if (options.steps == 0) options.steps = std::max<int64_t>(default_epochs * lines.training->size() / options.batch_size, 1);
  std::cout << lines.description << "\n";
  Trainer trainer(options, std::move(lines));
  std::signal(SIGINT, on_interrupt);
  return trainer.run();
}
