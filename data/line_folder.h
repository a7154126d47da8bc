// Folders of text lines: a picture for each line, and lines.tsv with the columns file, page, line_no, hand and text (UTF-8, tab-separated, a heading line).
#pragma once

#include <string>
#include <vector>

#include <fovea/data/dataset.h>
#include <fovea/data/text.h>

namespace fovea::data {

enum class LineGroup { page, hand };           // what a split must not divide

struct LineRecord {
  std::string file, page, hand, text;
  std::string line_no;                         // its place on the page, as given
};

class LineFolder : public Dataset {
 public:
  // Reads lines.tsv; pictures are read by get(). FileError for a damaged table, a text that is not UTF-8 or empty, or no lines at all.
  explicit LineFolder(std::string folder, LineGroup group = LineGroup::page);
  int64_t size() const override { return static_cast<int64_t>(records_.size()); }
  Sample get(int64_t i) const override;        // grey, dark ink on white as in the file
  std::string group(int64_t i) const override;
  const LineRecord& record(int64_t i) const;
  std::string path(int64_t i) const { return folder_ + "/" + record(i).file; }
  Alphabet alphabet() const;                   // of all lines

 private:
  std::string folder_;
  LineGroup group_;
  std::vector<LineRecord> records_;
};

}  // namespace fovea::data
