// A small command line: `program command --name value --flag file ...`. Unknown names are errors that say what is meant.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

class Arguments {
 public:
  // `names` take a value that is not empty, `flags` take none. ValueError for anything else that begins with "-", and for other words unless takes_files.
  Arguments(const std::vector<std::string>& words, const std::vector<std::string>& names, const std::vector<std::string>& flags, bool takes_files);

  bool has(const std::string& name) const { return values_.count(name) > 0; }
  std::string text(const std::string& name, const std::string& otherwise) const;
  int64_t integer(const std::string& name, int64_t otherwise, int64_t least, int64_t most) const;      // ValueError if it is no number, or not within these
  double number(const std::string& name, double otherwise) const;                  // ValueError if it is no number, or negative
  const std::vector<std::string>& files() const { return files_; }                 // the words that belong to no name

 private:
  std::map<std::string, std::string> values_;
  std::vector<std::string> files_;
};
