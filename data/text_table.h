// Tables in text files: a heading line, then one row a line, fields divided by one character. Fields hold no divider and no line end; quotes mean nothing.
#pragma once

#include <string>
#include <vector>

namespace fovea::data {

class TextTable {
 public:
  // FileError, naming the line, when a line has more or fewer fields than the heading. A byte-order mark, line ends of Windows and empty lines are skipped.
  static TextTable read(const std::string& path, char divider);

  int64_t size() const { return static_cast<int64_t>(rows_.size()); }
  size_t column(const std::string& name) const;                               // FileError, listing the columns, when there is none of this name
  const std::string& at(int64_t row, size_t column) const { return rows_[static_cast<size_t>(row)].fields[column]; }
  double number(int64_t row, size_t column) const;                            // FileError for what is not a finite number
  std::string place(int64_t row) const;                                       // "boxes.csv, line 7", for errors

 private:
  struct Row {
    int64_t line = 0;
    std::vector<std::string> fields;
  };
  std::string path_;
  std::vector<std::string> heading_;
  std::vector<Row> rows_;
};

}  // namespace fovea::data
