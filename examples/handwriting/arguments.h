// A small command line: `program command --name value --flag file ...`. Unknown names are errors that say what is meant.
#pragma once

#include <map>
#include <string>
#include <vector>

class Arguments {
 public:
  // `names` take a value, `flags` do not. ValueError for anything else that begins with "--".
  Arguments(const std::vector<std::string>& words, const std::vector<std::string>& names, const std::vector<std::string>& flags);

  bool has(const std::string& name) const { return values_.count(name) > 0; }
  std::string text(const std::string& name, const std::string& otherwise) const;
  long integer(const std::string& name, long otherwise, long least) const;         // ValueError if it is no number, or below `least`
  double number(const std::string& name, double otherwise) const;                  // ValueError if it is no number, or negative
  const std::vector<std::string>& files() const { return files_; }                 // the words that belong to no name

 private:
  std::map<std::string, std::string> values_;
  std::vector<std::string> files_;
};
