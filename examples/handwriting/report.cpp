#include "report.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>

using namespace fovea;

namespace {

std::string csv_field(double value) { return std::isnan(value) ? "" : str(value); }

std::string caption(const std::string& text) {
  constexpr size_t longest = 200;                            // characters
  const std::u32string characters = decode_utf8(text);
  return characters.size() <= longest ? text : encode_utf8(characters.substr(0, longest)) + " ...";
}

Tensor upper_left(const Tensor& image) {
  const Tensor upper = narrow(image, 1, 0, std::min<int64_t>(image.size(1), 200));
  return contiguous(narrow(upper, 2, 0, std::min<int64_t>(image.size(2), 2000)));
}

}  // namespace

void make_output_folder(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  check<FileError>(!error && access(path.c_str(), W_OK) == 0, path, ": the output folder cannot be written to", error ? ": " + error.message() : "");
}

std::string percent(double rate, int digits) {
  if (std::isnan(rate)) return "-";
  char text[32];
  std::snprintf(text, sizeof text, "%.*f %%", digits, 100 * rate);
  return text;
}

void write_text_file(const std::string& path, const std::string& text) {
  AtomicFile file(path, "fovea-handwriting");
  file.write(text);
  file.commit();
}

void write_history_csv(const std::string& path, const std::vector<HistoryRow>& history) {
  std::string text = "step,loss,training_cer,held_out_cer,lr,lines_per_second\n";
  for (const HistoryRow& r : history) {
    char line[200];
    std::snprintf(line, sizeof line, "%lld,%.6g,%s,%s,%.6g,%.4g\n", static_cast<long long>(r.step), r.loss, csv_field(r.training_cer).c_str(),
                  csv_field(r.held_out_cer).c_str(), r.lr, r.lines_per_second);
    text += line;
  }
  write_text_file(path, text);
}

void draw_history(const std::string& path, const std::vector<HistoryRow>& history) {
  viz::Curve loss{"loss", {}, {}}, training{"training lines", {}, {}}, held_out{"held-out lines", {}, {}}, lr{"learning rate", {}, {}};
  const auto append = [](viz::Curve& curve, int64_t x, double y) {
    curve.x.push_back(static_cast<double>(x));
    curve.y.push_back(y);
  };
  for (const HistoryRow& r : history) {
    append(loss, r.step, r.loss);
    append(training, r.step, 100 * r.training_cer);
    if (!std::isnan(r.held_out_cer)) append(held_out, r.step, 100 * r.held_out_cer);
    append(lr, r.step, r.lr);
  }
  viz::plot({{"CTC loss", {loss}, true}, {"CER in %", {training, held_out}, true}, {"learning rate", {lr}, false}}, {.title = "Training of the recognizer", .x_label = "step"})
      .write(path);
}

void draw_predictions(const std::string& path, const data::DatasetPtr& lines, const std::vector<Reading>& readings, int64_t count) {
  constexpr int64_t margin = 12, text_scale = 2, scale = 2;
  count = std::min({count, lines->size(), static_cast<int64_t>(readings.size())});
  struct Entry {
    Tensor image;
    std::string truth, reading;
    bool is_right = false;
  };
  std::vector<Entry> entries;
  int64_t width = 400, height = margin;
  for (int64_t i = 0; i < count; ++i) {
    const data::Sample s = lines->get(i);
    const std::string& reading = readings[static_cast<size_t>(i)].text;
    entries.push_back({upper_left(s.image), "truth  " + caption(s.text), "read   " + caption(reading), reading == s.text});
    const Entry& e = entries.back();
    width = std::max({width, scale * e.image.size(2), viz::text_width(e.truth, text_scale), viz::text_width(e.reading, text_scale)});
    height += scale * e.image.size(1) + 2 * viz::text_height(text_scale) + 2 * margin;
  }
  viz::Canvas canvas(width + 2 * margin, height);
  int64_t y = margin;
  for (const Entry& e : entries) {
    canvas.picture(margin, y, e.image, scale);
    y += scale * e.image.size(1) + 4;
    canvas.text(margin, y, e.truth, viz::grey, text_scale);
    y += viz::text_height(text_scale);
    canvas.text(margin, y, e.reading, e.is_right ? viz::Color{0, 110, 40} : viz::Color{190, 20, 20}, text_scale);
    y += viz::text_height(text_scale) + 2 * margin - 4;
  }
  canvas.write(path);
}

void print_predictions(const data::DatasetPtr& lines, const std::vector<Reading>& readings, int64_t count) {
  count = std::min({count, lines->size(), static_cast<int64_t>(readings.size())});
  for (int64_t i = 0; i < count; ++i) {
    const Reading& r = readings[static_cast<size_t>(i)];
    const std::string truth = lines->get(i).text;
    std::printf("  truth  %s\n  read   %s%s  (confidence %.2f)\n", caption(truth).c_str(), caption(r.text).c_str(), r.text == truth ? "" : "   <-", r.confidence);
  }
}
