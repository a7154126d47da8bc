#include "lines.h"

#include <filesystem>
#include <limits>
#include <set>

#include <fovea/tensor/number.h>

using namespace fovea;

namespace {

constexpr int64_t most_drawn = 100'000;                      // held-out drawn lines that a model file may ask for

// A number that stands for the table of a folder: other files, pages, hands or texts, or another order, give another one (FNV-1a).
std::string table_number(const data::LineFolder& folder) {
  uint64_t hash = 0xcbf29ce484222325;
  const auto add = [&](const std::string& text) {
    for (const char c : text + '\t') hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  };
  for (int64_t i = 0; i < folder.size(); ++i)
    for (const auto field : {&data::LineRecord::file, &data::LineRecord::page, &data::LineRecord::hand, &data::LineRecord::text})
      add(folder.record(i).*field);
  return std::to_string(hash);
}

// One stream, cut in two: the held-out lines come first and are never trained on.
Lines drawn_lines(const LinesOptions& o, int64_t height, int64_t drawn) {
  const data::SyntheticHandwritingOptions drawing{.height = height};
  return {std::make_shared<data::SyntheticLines>(drawing, o.seed, drawn, o.held_out_drawn),
          std::make_shared<data::SyntheticLines>(drawing, o.seed, o.held_out_drawn),
          data::Alphabet(data::handwriting_characters()), str("drawn lines, an endless stream; ", o.held_out_drawn, " held out"),
          {{"data", ""}, {"held-out", std::to_string(o.held_out_drawn)}, {"seed", std::to_string(o.seed)}}};
}

// Split by what must not be in both parts: the hand that wrote it, or the page where all is in one hand.
Lines folder_lines(const LinesOptions& o) {
  const data::LineFolder all(o.folder);
  std::set<std::string> hands;
  for (int64_t i = 0; i < all.size(); ++i) hands.insert(all.record(i).hand);
  const bool by_hand = o.split == "hand" || (o.split == "auto" && hands.size() > 1);
  const std::string unit = by_hand ? "hand" : "page";
  const data::DatasetPtr lines = std::make_shared<data::LineFolder>(o.folder, by_hand ? data::LineGroup::hand : data::LineGroup::page);
  const data::Split split = data::split_by_group(lines, o.held_out_fraction, o.seed);
  return {split.training, split.held_out, all.alphabet(),
          str(lines->size(), " lines of ", o.folder, ", split by ", unit, ": ", split.training->size(), " to train on, ", split.held_out->size(),
              " held out"),
          {{"data", std::filesystem::path(o.folder).lexically_normal().string()}, {"table", table_number(all)}, {"split", unit},
           {"held-out", exact_text(o.held_out_fraction)}, {"seed", std::to_string(o.seed)}}};
}

const std::string& remembered(const Model& model, const std::string& key, const std::string& path) {
  const auto found = model.run.find(key);
  check<FileError>(found != model.run.end(), path, ": does not say which lines it was trained on (\"", key,
                   "\" is missing); evaluate --all --data FOLDER measures all lines of a folder");
  return found->second;
}

LinesOptions remembered_options(const Model& model, const std::string& path) {
  LinesOptions o;
  o.folder = remembered(model, "data", path);
  o.seed = static_cast<uint64_t>(parse_integer(remembered(model, "seed", path), 0, std::numeric_limits<int64_t>::max(), path + ": its seed"));
  const std::string& held_out = remembered(model, "held-out", path);
  if (o.folder.empty()) {
    o.held_out_drawn = parse_integer(held_out, 1, most_drawn, path + ": its number of held-out lines");
    return o;
  }
  o.split = remembered(model, "split", path);
  check<FileError>(o.split == "page" || o.split == "hand", path, ": its lines are split by \"", o.split.substr(0, 40), "\", expected page or hand");
  const std::optional<double> fraction = number_in<double>(held_out);
  check<FileError>(fraction && *fraction > 0 && *fraction < 1, path, ": its share of held-out lines is \"", held_out.substr(0, 40), "\", expected a number between 0 and 1");
  o.held_out_fraction = *fraction;
  return o;
}

}  // namespace

Lines choose_lines(const LinesOptions& options, int64_t height, int64_t drawn) {
  return options.folder.empty() ? drawn_lines(options, height, drawn) : folder_lines(options);
}

MeasuredLines lines_to_measure(const Model& model, const std::string& model_path, const std::string& folder, bool is_all) {
  if (is_all) {
    check<ValueError>(!folder.empty(), "evaluate --all takes --data FOLDER, whose lines are all measured");
    const auto lines = std::make_shared<data::LineFolder>(folder);
    return {lines, str("all ", lines->size(), " lines of ", folder, ", also any that the model was trained on")};
  }
  LinesOptions o = remembered_options(model, model_path);
  if (o.folder.empty()) {
    check<FileError>(folder.empty(), model_path, ": was trained on drawn lines, not on ", folder, "; evaluate --all --data ", folder,
                     " measures all lines of the folder");
    const Lines drawn = choose_lines(o, model.options.height, 0);
    return {drawn.held_out, str(drawn.held_out->size(), " drawn lines that were held out (seed ", o.seed, ")")};
  }
  check<FileError>(!folder.empty() || std::filesystem::exists(o.folder), model_path, ": was trained on the lines of ", o.folder,
                   ", which is not there; tell with --data where they are now");
  if (!folder.empty()) o.folder = folder;
  const Lines lines = choose_lines(o, model.options.height, 0);
  check<FileError>(lines.run.at("table") == remembered(model, "table", model_path), o.folder, "/lines.tsv: is not the table that ", model_path,
                   " was trained with, so which lines it has not seen is not known; evaluate --all --data ", o.folder, " measures all of them");
  return {lines.held_out, str(lines.held_out->size(), " lines of ", o.folder, " that were held out (split by ", o.split, ", seed ", o.seed, ")")};
}

std::string exact_text(double value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, value).ptr};
}
