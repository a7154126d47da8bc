// fovea-handwriting: trains a recognizer of handwritten lines, reads lines with it, and measures how well it reads.
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <limits>

#include "arguments.h"
#include "report.h"

using namespace fovea;

namespace {

constexpr const char* usage = R"(fovea-handwriting train [--data FOLDER] [--out DIR] [--steps N] [...]   learn to read lines
fovea-handwriting read --model FILE line.png ...                        print path, confidence and text of each line
fovea-handwriting evaluate --model FILE [--data FOLDER] [--all]         character and word error rate
fovea-handwriting describe [--model FILE]                               the network: layers, cost, receptive field
fovea-handwriting draw --out DIR [--lines N] [--height N] [--seed N]    drawn lines as a folder: pictures and lines.tsv, ten lines a page

train, without --data, learns from lines that the program draws itself. With it: a folder that holds pictures and lines.tsv (columns file, page,
line_no, hand, text).
  --out DIR          where model, history and pictures go (out)
  --steps N          training steps (drawn lines: 2500; folders: 60 times through)
  --batch N          lines of a step (16; folders: 8)
  --lr X             highest learning rate (0.002)
  --height N         pixels that lines are scaled to, a multiple of 16, up to 512 (drawn lines: 32; folders: 48)
  --hidden N         units of the LSTM, each direction (128; up to 4096)
  --layers N         layers of the LSTM (1; up to 16)
  --dropout P        before and after the LSTM (drawn lines: 0; folders: 0.3)
  --split WORD       what of a folder is held out as a whole: page, hand or auto (auto: hand where there are several)
  --held-out F       fraction of a folder's lines to hold out (0.13)
  --evaluate-every N steps between measurements on held-out lines, each followed by a checkpoint (250)
  --seed N           of everything that is drawn (1)
  --resume           go on from the checkpoint in --out, with the options of the run it comes from

evaluate measures the lines that the model's own run held out; the model remembers which. --data says where they are now.
  --all              measure all lines of the folder in --data instead, be it another one or not

train, read and evaluate take --device NAME: cpu, cuda, or cuda:1 for the second GPU (cpu).
All commands but draw take --threads N: processor threads (all of them).
)";

constexpr int64_t most_threads = 1024, most_batch = 4096, most_steps = 1'000'000'000, any_number = std::numeric_limits<int64_t>::max();

RecognizerOptions network_options(const Arguments& a, bool is_drawn) {
  RecognizerOptions o;
  o.height = a.integer("height", is_drawn ? 32 : 48, 16, largest_height);
  o.hidden = a.integer("hidden", 128, 1, largest_width);
  o.rnn_layers = a.integer("layers", 1, 1, most_rnn_layers);
  o.dropout = a.number("dropout", is_drawn ? 0 : 0.3);
  check<ValueError>(o.dropout < 1, "option --dropout must be below 1, got ", o.dropout);
  return o;
}

LinesOptions lines_options(const Arguments& a) {
  LinesOptions o;
  o.folder = a.text("data", "");
  check<ValueError>(!o.folder.empty() || (!a.has("split") && !a.has("held-out")), "options --split and --held-out are for the lines of a ",
                    "folder (--data); of drawn lines ", o.held_out_drawn, " are held out");
  o.split = a.text("split", o.split);
  check<ValueError>(o.split == "auto" || o.split == "page" || o.split == "hand", "option --split takes page, hand or auto, got \"", o.split, "\"");
  o.held_out_fraction = a.number("held-out", o.held_out_fraction);
  check<ValueError>(o.held_out_fraction > 0 && o.held_out_fraction < 1, "option --held-out must lie between 0 and 1, got ", o.held_out_fraction);
  o.seed = static_cast<uint64_t>(a.integer("seed", 1, 0, any_number));
  return o;
}

Device device_option(const Arguments& a) {
  try {
    return device_named(a.text("device", "cpu"));
  } catch (const Error& error) {
    fail<ValueError>("option --device: ", error.what());
  }
}

int train_model(const Arguments& a) {
  TrainingOptions o;
  o.device = device_option(a);
  o.out = a.text("out", o.out);
  o.lines = lines_options(a);
  const bool is_drawn = o.lines.folder.empty();
  o.network = network_options(a, is_drawn);
  o.steps = a.integer("steps", is_drawn ? 2500 : 0, 1, most_steps);
  o.batch_size = a.integer("batch", is_drawn ? 16 : 8, 1, most_batch);
  o.evaluate_every = a.integer("evaluate-every", o.evaluate_every, 1, most_steps);
  o.lr = a.number("lr", o.lr);
  o.resume = a.has("resume");
  return train(o);
}

int read(const Arguments& a) {
  check<ValueError>(a.has("model") && !a.files().empty(), "read takes --model FILE and pictures of lines");
  const Model model = load_model(a.text("model", ""));
  model.network->to(device_option(a));
  NoGrad no_grad;
  int status = 0;
  for (const std::string& path : a.files()) {
    try {
      const Tensor image = prepare_picture(path, model.options);
      const Tensor padded = pad(image, {0, (4 - image.size(2) % 4) % 4});
      const Tensor steps = steps_of(from_vector(std::vector<int64_t>{image.size(2)}));
      const Reading r = read_lines(model, unsqueeze(padded, 0), steps).front();
      std::printf("%s\t%.3f\t%s\n", path.c_str(), r.confidence, r.text.c_str());
    } catch (const FileError& error) {                       // the other pictures are read all the same
      std::cerr << "fovea-handwriting: " << error.what() << "\n";
      status = 1;
    }
  }
  return status;
}

int evaluate_model(const Arguments& a) {
  check<ValueError>(a.has("model"), "evaluate takes --model FILE");
  const std::string path = a.text("model", "");
  const Model model = load_model(path);
  model.network->to(device_option(a));
  const auto [lines, description] = lines_to_measure(model, path, a.text("data", ""), a.has("all"));
  const Evaluation e = evaluate(model, lines, 16);
  std::printf("%s: CER %s (%lld of %lld characters), WER %s (%lld of %lld words), %.0f lines/s\n", description.c_str(), percent(e.characters.rate()).c_str(),
              static_cast<long long>(e.characters.edits), static_cast<long long>(e.characters.length), percent(e.words.rate()).c_str(),
              static_cast<long long>(e.words.edits), static_cast<long long>(e.words.length), static_cast<double>(lines->size()) / e.seconds);
  return 0;
}

int describe_network(const Arguments& a) {
  const Model model = a.has("model") ? load_model(a.text("model", "")) : Model(network_options(a, true), data::Alphabet(data::handwriting_characters()));
  const Shape input{1, 1, model.options.height, 256};
  std::cout << *model.network << "\nfor a line of " << input << ": " << model.network->cost(input) << "\nthe convolutions see "
            << model.network->layer("features").receptive_field() << "\n";
  std::string run;
  for (const auto& [name, value] : model.run)
    if (name != "table") run += str(run.empty() ? "trained with " : ", ", name, " ", value.empty() ? "drawn lines" : value);
  if (!run.empty()) std::cout << run << "\n";
  return 0;
}

int draw(const Arguments& a) {
  check<ValueError>(a.has("out"), "draw takes --out DIR");
  const std::string out = a.text("out", "");
  const data::SyntheticHandwritingOptions drawing{.height = a.integer("height", 32, 16, largest_height)};
  const int64_t lines = a.integer("lines", 100, 1, 1'000'000);
  const auto seed = static_cast<uint64_t>(a.integer("seed", 1, 0, any_number));
  make_output_folder(out);
  std::string table = "file\tpage\tline_no\thand\ttext\n";
  for (int64_t i = 0; i < lines; ++i) {
    const data::HandwritingLine line = data::draw_handwriting(drawing, seed, static_cast<uint64_t>(i));
    char name[32];
    std::snprintf(name, sizeof name, "%05lld.png", static_cast<long long>(i));
    write_image_bytes(out + "/" + name, line.image);
    table += str(name, "\tpage ", i / 10, "\t", i % 10 + 1, "\tdrawn\t", line.text, "\n");
  }
  write_text_file(out + "/lines.tsv", table);
  return 0;
}

struct Command {
  std::string name;
  std::vector<std::string> options, flags;
  bool takes_files;
  int (*run)(const Arguments&);
};

const std::vector<Command>& commands() {
  static const std::vector<Command> list = {
      {"train",
       {"data", "out", "steps", "batch", "lr", "height", "hidden", "layers", "dropout", "split", "held-out", "evaluate-every", "seed", "device", "threads"},
       {"resume"}, false, train_model},
      {"read", {"model", "device", "threads"}, {}, true, read},
      {"evaluate", {"model", "data", "device", "threads"}, {"all"}, false, evaluate_model},
      {"describe", {"model", "height", "hidden", "layers", "threads"}, {}, false, describe_network},
      {"draw", {"out", "lines", "height", "seed"}, {}, false, draw}};
  return list;
}

bool asks_for_help(const std::string& word) { return word == "--help" || word == "-h"; }

int run(const std::vector<std::string>& words) {
  if (words.empty() || words[0] == "help" || std::any_of(words.begin(), words.end(), asks_for_help)) {
    std::cout << usage;
    return words.empty() ? 2 : 0;
  }
  for (const Command& command : commands()) {
    if (command.name != words[0]) continue;
    const Arguments a({words.begin() + 1, words.end()}, command.options, command.flags, command.takes_files);
    if (a.has("threads")) set_num_threads(static_cast<int>(a.integer("threads", 1, 1, most_threads)));
    return command.run(a);
  }
  fail<ValueError>("unknown command \"", words[0], "\"; known are train, read, evaluate, describe and draw");
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const int status = run({argv + 1, argv + argc});
    // A full disk or a closed pipe shows when the output is handed over; a result that nobody got is no success.
    std::cout.flush();
    check<FileError>(std::cout.good() && std::fflush(stdout) == 0 && !std::ferror(stdout), "the output cannot be written");
    return status;
  } catch (const std::exception& error) {
    std::cerr << "fovea-handwriting: " << error.what() << "\n";
    return 1;
  }
}
