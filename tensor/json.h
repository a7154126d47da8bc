// A strict JSON reader (RFC 8259) that builds nothing: the caller says what it expects, so a file cannot make it allocate or recurse more than the caller's own grammar does.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace fovea {

class JsonReader {
 public:
  // FileError beginning with `what` if the text is not UTF-8. Text and `what` must outlive the reader.
  JsonReader(std::string_view text, const std::string& what);

  // Each reads one value of its kind, or throws FileError that names the place.
  void object(const std::function<void(const std::string& key)>& member);     // member reads the value of the key; a key that comes twice is the caller's to refuse
  void array(const std::function<void()>& element);                    // element reads one
  std::string string();
  int64_t integer();                                                   // without fraction or exponent
  void end();                                                          // nothing but white space follows

  [[noreturn]] void fail_here(const std::string& reason) const;

 private:
  void skip_space();
  bool accept(char c);
  void expect(char c);
  uint32_t hex4();
  void escape(std::string& out);

  std::string_view text_;
  const std::string& what_;
  size_t at_ = 0;
};

std::string json_quoted(std::string_view text);                        // with its quotes; the text must be UTF-8

}  // namespace fovea
