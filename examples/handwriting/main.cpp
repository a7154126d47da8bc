// fovea-handwriting: trains a recognizer of handwritten lines, reads lines with it, and measures how well it reads.
#include <cstdio>
#include <iostream>

#include "arguments.h"
#include "report.h"

using namespace fovea;

namespace {

constexpr const char* usage = R"(fovea-handwriting train [--data FOLDER] [--out DIR] [--steps N] [...]   learn to read lines
fovea-handwriting read --model FILE line.png ...                        print the text and the confidence of each line
fovea-handwriting evaluate --model FILE [--data FOLDER]                 character and word error rate
fovea-handwriting describe [--model FILE]                               the network: layers, cost, receptive field
fovea-handwriting draw --out DIR [--lines N] [--height N] [--seed N]    drawn lines as a folder: pictures and lines.tsv, ten lines a page

train, without --data, learns from lines that the program draws itself. With it: a folder that holds pictures and lines.tsv (columns file, page,
line_no, hand, text).
  --out DIR          where model, history and pictures go (out)
  --steps N          training steps (drawn lines: 2500; folders: 60 times through)
  --batch N          lines of a step (16; folders: 8)
  --lr X             highest learning rate (0.002)
  --height N         pixels that lines are scaled to, a multiple of 16 (drawn lines: 32; folders: 48)
  --hidden N         units of the LSTM, each direction (128)
  --layers N         layers of the LSTM (1)
  --dropout P        before and after the LSTM (drawn lines: 0; folders: 0.3)
  --split WORD       what is held out as a whole: page, hand or auto (auto: hand where there are several)
  --held-out F       fraction of a folder's lines to hold out (0.13)
  --evaluate-every N steps between measurements on held-out lines (250)
  --seed N           of everything that is drawn (1)
  --threads N        processor threads (all)
  --resume           go on from the checkpoint in --out
)";

TrainingOptions training_options(const Arguments& a) {
  TrainingOptions o;
  o.out = a.text("out", "out");
  o.data = a.text("data", "");
  const bool is_drawn = o.data.empty();
  o.split_by = a.text("split", "auto");
  o.network.height = a.integer("height", is_drawn ? 32 : 48, 16);
  o.network.hidden = a.integer("hidden", 128, 1);
  o.network.rnn_layers = a.integer("layers", 1, 1);
  o.network.dropout = a.number("dropout", is_drawn ? 0 : 0.3);
  o.steps = a.integer("steps", is_drawn ? 2500 : 0, 1);
  o.batch_size = a.integer("batch", is_drawn ? 16 : 8, 1);
  o.evaluate_every = a.integer("evaluate-every", 250, 1);
  o.held_out_fraction = a.number("held-out", 0.13);
  o.lr = a.number("lr", 2e-3);
  o.seed = static_cast<uint64_t>(a.integer("seed", 1, 0));
  o.resume = a.has("resume");
  return o;
}

int read(const Arguments& a) {
  check<ValueError>(a.has("model") && !a.files().empty(), "read takes --model FILE and pictures of lines");
  const Model model = load_model(a.text("model", ""));
  NoGrad no_grad;
  for (const std::string& path : a.files()) {
    const Tensor image = prepare_picture(path, model.options.height);
    const Tensor padded = pad(image, {0, (4 - image.size(2) % 4) % 4});
    const Tensor steps = steps_of(from_vector(std::vector<int64_t>{image.size(2)}));
    const Reading r = read_logits(model.network->forward(unsqueeze(padded, 0), steps), steps, model.alphabet).front();
    std::printf("%s\t%.3f\t%s\n", path.c_str(), r.confidence, r.text.c_str());
  }
  return 0;
}

int evaluate_model(const Arguments& a) {
  check<ValueError>(a.has("model"), "evaluate takes --model FILE");
  const Model model = load_model(a.text("model", ""));
  const std::string folder = a.text("data", "");
  TrainingOptions o = training_options(a);
  o.network.height = model.options.height;
  const data::DatasetPtr lines = held_out_lines(o);
  const Evaluation e = evaluate(model, lines, 16);
  std::printf("%lld lines: CER %.2f %% (%lld of %lld characters), WER %.2f %% (%lld of %lld words), %.0f lines/s\n", static_cast<long long>(lines->size()),
              100 * e.characters.rate(), static_cast<long long>(e.characters.edits), static_cast<long long>(e.characters.length), 100 * e.words.rate(),
              static_cast<long long>(e.words.edits), static_cast<long long>(e.words.length), static_cast<double>(lines->size()) / e.seconds);
  return 0;
}

int describe_network(const Arguments& a) {
  const Model model = a.has("model") ? load_model(a.text("model", "")) : Model(training_options(a).network, data::Alphabet(data::handwriting_characters()));
  const Shape input{1, 1, model.options.height, 256};
  std::cout << *model.network << "\nfor a line of " << input << ": " << model.network->cost(input) << "\nthe convolutions see " << model.network->layer("features").receptive_field()
            << "\n";
  return 0;
}

int draw(const Arguments& a) {
  const std::string out = a.text("out", "out");
  const data::SyntheticHandwritingOptions drawing{.height = a.integer("height", 32, 16)};
  make_output_folder(out);
  std::string table = "file\tpage\tline_no\thand\ttext\n";
  for (long i = 0; i < a.integer("lines", 100, 1); ++i) {
    const data::HandwritingLine line = data::draw_handwriting(drawing, static_cast<uint64_t>(a.integer("seed", 1, 0)), static_cast<uint64_t>(i));
    char name[32];
    std::snprintf(name, sizeof name, "%05ld.png", i);
    write_image_bytes(out + "/" + name, line.image);
    table += str(name, "\tpage ", i / 10, "\t", i % 10 + 1, "\tdrawn\t", line.text, "\n");
  }
  write_text_file(out + "/lines.tsv", table);
  return 0;
}

int run(const std::vector<std::string>& words) {
  if (words.empty() || words[0] == "--help" || words[0] == "help") {
    std::cout << usage;
    return words.empty() ? 2 : 0;
  }
  const Arguments a({words.begin() + 1, words.end()},
                    {"data", "out", "steps", "batch", "lr", "height", "hidden", "layers", "dropout", "split", "held-out", "evaluate-every", "seed", "threads", "model", "lines"},
                    {"resume"});
  if (a.has("threads")) set_num_threads(static_cast<int>(a.integer("threads", 1, 1)));
  if (words[0] == "train") return train(training_options(a));
  if (words[0] == "read") return read(a);
  if (words[0] == "evaluate") return evaluate_model(a);
  if (words[0] == "describe") return describe_network(a);
  if (words[0] == "draw") return draw(a);
  fail<ValueError>("unknown command \"", words[0], "\"; known are train, read, evaluate, describe and draw");
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::cerr << "fovea-handwriting: " << error.what() << "\n";
    return 1;
  }
}
