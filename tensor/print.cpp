#include <fovea/tensor/print.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <ostream>
#include <type_traits>
#include <vector>

#include <fovea/tensor/elements.h>

namespace fovea {
namespace {

template <class T>
std::string chars(T value, std::chars_format format) {
  char buffer[512];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value, format).ptr;
  return {buffer, end};
}

std::string printed(const char* format, int precision, double value) {
  char buffer[512];
  std::snprintf(buffer, sizeof(buffer), format, precision, value);
  return buffer;
}

// The fewest digits that tell a number from its neighbours. The standard library knows float and double; for the others digits are added until they do.
std::string shortest(float value, std::chars_format format) { return chars(value, format); }
std::string shortest(double value, std::chars_format format) { return chars(value, format); }
template <class Half>
std::string shortest(Half value, std::chars_format format) {
  const float exact = value;
  const char* pattern = format == std::chars_format::fixed ? "%.*f" : "%.*e";
  for (int digits = 0; digits < 30; ++digits) {
    const std::string text = printed(pattern, digits, exact);
    if (Half(std::strtof(text.c_str(), nullptr)).bits == value.bits) return text;
  }
  return chars(exact, format);
}

// From which magnitude on powers of ten are written: where not all digits of an integer are sure any more.
double exponent_cutoff(float) { return 1e6; }
double exponent_cutoff(double) { return 1e8; }
double exponent_cutoff(float16) { return 1e3; }
double exponent_cutoff(bfloat16) { return 1e6; }

// A number in parts: -12.5e+03 is "-12", "5", "+03".
struct Number {
  std::string whole, fraction, exponent;
};

// Of "-12.50" or "-1.25e+03".
Number parts_of(const std::string& text) {
  Number number;
  const size_t e = std::min(text.find('e'), text.size()), point = std::min(text.find('.'), e);
  number.whole = text.substr(0, point);
  if (point < e) number.fraction = text.substr(point + 1, e - point - 1);
  if (e < text.size()) number.exponent = text.substr(e + 1);
  return number;
}

template <class T>
Number number_of(T value, int precision, bool has_exponent) {
  const auto format = has_exponent ? std::chars_format::scientific : std::chars_format::fixed;
  const auto fraction_length = [](const std::string& text) {
    const size_t point = text.find('.');
    return point == std::string::npos ? 0 : static_cast<int>(std::min(text.find('e'), text.size()) - point - 1);
  };
  std::string text = shortest(value, format);
  if (fraction_length(text) > precision) text = printed(has_exponent ? "%.*e" : "%.*f", precision, static_cast<double>(value));
  Number number = parts_of(text);
  while (!number.fraction.empty() && number.fraction.back() == '0') number.fraction.pop_back();
  return number;
}

template <class T>
bool wants_exponents(const std::vector<T>& values) {
  double largest = 0, smallest = 0;
  for (const T value : values) {
    const double magnitude = std::abs(static_cast<double>(value));
    if (!std::isfinite(magnitude) || magnitude == 0) continue;
    largest = std::max(largest, magnitude);
    smallest = smallest == 0 ? magnitude : std::min(smallest, magnitude);
  }
  return largest > 0 && (largest >= exponent_cutoff(T{}) || smallest < 1e-4 || largest / smallest > 1000);
}

std::string padded(const std::string& text, size_t width) { return text.size() < width ? std::string(width - text.size(), ' ') + text : text; }

// All texts get the same width.
template <class T>
std::vector<std::string> floating_words(const std::vector<T>& values, int precision) {
  const bool has_exponent = wants_exponents(values);
  std::vector<Number> numbers(values.size());
  size_t whole = 0, fraction = 0, exponent = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(static_cast<double>(values[i]))) continue;
    numbers[i] = number_of(values[i], precision, has_exponent);
    whole = std::max(whole, numbers[i].whole.size());
    fraction = std::max(fraction, numbers[i].fraction.size());
    exponent = std::max(exponent, numbers[i].exponent.size());
  }
  size_t width = whole + 1 + fraction + (has_exponent ? 1 + exponent : 0);
  std::vector<std::string> words;
  for (size_t i = 0; i < values.size(); ++i) {
    Number& n = numbers[i];
    if (n.whole.empty()) {                                           // nan or infinite
      words.push_back(to_text(static_cast<double>(values[i])));
      width = std::max(width, words.back().size());
      continue;
    }
    if (has_exponent) n = parts_of(printed("%.*e", static_cast<int>(fraction), static_cast<double>(values[i])));   // columns are filled with true digits
    n.fraction.append(fraction - n.fraction.size(), ' ');
    if (has_exponent) n.exponent.insert(1, exponent - n.exponent.size(), '0');
    words.push_back(padded(n.whole, whole) + '.' + n.fraction + (has_exponent ? 'e' + n.exponent : ""));
  }
  for (std::string& word : words) word = padded(word, width);
  return words;
}

template <class T>
std::vector<std::string> integer_words(const std::vector<T>& values) {
  std::vector<std::string> words;
  size_t width = 0;
  for (const T value : values) {
    words.push_back(std::to_string(value));
    width = std::max(width, words.back().size());
  }
  for (std::string& word : words) word = padded(word, width);
  return words;
}

class Layout {
 public:
  Layout(const Tensor& x, const PrintOptions& options)
      : view_(x.view()), options_(options), is_summary_(x.numel() > options.threshold) {}

  std::string text() {
    words_ = dispatch(view_.dtype, [&](auto zero) {
      using T = decltype(zero);
      std::vector<T> values;
      collect<T>(0, 0, values);
      if constexpr (std::is_same_v<T, bool>) return bool_words(values);
      else if constexpr (std::is_integral_v<T>) return integer_words(values);
      else return floating_words(values, options_.precision);
    });
    return block(0, " ", options_.line_width);
  }

 private:
  bool is_cut(int axis) const { return is_summary_ && view_.size(axis) > 2 * options_.edge_items; }
  // Calls item(i) for the indices of an axis that are shown, and gap() where others are left out.
  template <class Item, class Gap>
  void for_shown(int axis, const Item& item, const Gap& gap) const {
    const int64_t n = view_.size(axis), edge = options_.edge_items;
    for (int64_t i = 0; i < n; ++i) {
      if (is_cut(axis) && i == edge) {
        gap();
        i = n - edge;
        if (i == n) break;
      }
      item(i);
    }
  }

  std::vector<std::string> bool_words(const std::vector<bool>& values) const {
    std::vector<std::string> words;
    for (const bool value : values) words.push_back(!value ? "False" : view_.rank() > 0 ? " True" : "True");
    return words;
  }

  template <class T>
  void collect(int axis, int64_t offset, std::vector<T>& values) const {
    if (axis == view_.rank()) return values.push_back(view_.as<T>()[offset]);
    for_shown(axis, [&](int64_t i) { collect<T>(axis + 1, offset + i * view_.stride(axis), values); }, [] {});
  }

  std::string block(int axis, const std::string& indent, int width) {
    if (axis == view_.rank()) return words_[next_++];
    const std::string inside = axis + 1 == view_.rank() ? row(axis, indent, width) : rows(axis, indent, width);
    return '[' + inside.substr(indent.size()) + ']';
  }

  // The last axis: words side by side, on new lines where the width is used up. One character is kept for the bracket.
  std::string row(int axis, const std::string& indent, int width) {
    std::string done, line = indent;
    bool is_first = true;
    const auto put = [&](const std::string& word) {
      if (!is_first) line += ' ';
      is_first = false;
      if (line.size() + word.size() > static_cast<size_t>(width - 1) && line.size() > indent.size()) {
        done += line.substr(0, line.find_last_not_of(' ') + 1) + '\n';
        line = indent;
      }
      line += word;
    };
    for_shown(axis, [&](int64_t) { put(words_[next_++]); }, [&] { put("..."); });
    return done + line;
  }

  std::string rows(int axis, const std::string& indent, int width) {
    std::string text;
    const std::string separator(static_cast<size_t>(view_.rank() - axis - 1), '\n');
    bool is_first = true;
    const auto put = [&](const std::string& part) {
      if (!is_first) text += separator;
      is_first = false;
      text += indent + part;
    };
    for_shown(axis, [&](int64_t) { put(block(axis + 1, indent + ' ', width - 1)); }, [&] { put("..."); });
    return text;
  }

  ConstView view_;
  PrintOptions options_;
  bool is_summary_;
  std::vector<std::string> words_;                                   // of the shown elements, in row-major order
  size_t next_ = 0;
};

}  // namespace

std::string to_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[64];
  return {buffer, std::to_chars(buffer, buffer + sizeof(buffer), value).ptr};
}

std::string to_text(float value) {
  if (!std::isfinite(value)) return to_text(static_cast<double>(value));
  char buffer[64];
  return {buffer, std::to_chars(buffer, buffer + sizeof(buffer), value).ptr};
}

std::string to_string(const Tensor& x, PrintOptions options) {
  if (!x.defined()) return "undefined";
  const std::string dtype = x.dtype() == DType::float32 ? "" : str(' ', x.dtype());
  if (x.is_meta()) return str("meta", dtype, ' ', x.shape());
  if (x.numel() == 0) return x.rank() == 1 ? "[]" + dtype : str("[]", dtype, ' ', x.shape());
  check<ValueError>(options.precision >= 0 && options.precision <= 100 && options.edge_items >= 0, "to_string: precision must be in [0, 100] and edge_items not negative, got ",
                    options.precision, " and ", options.edge_items);
  const bool is_on_cpu = x.device() == Device::cpu();
  const Tensor values = is_on_cpu ? x : contiguous_on_cpu(x, "to_string");
  return Layout(values, options).text() + dtype + (is_on_cpu ? "" : str(' ', x.device()));
}

std::ostream& operator<<(std::ostream& out, const Tensor& x) { return out << to_string(x); }

}  // namespace fovea
