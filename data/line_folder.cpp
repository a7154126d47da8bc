#include <fovea/data/line_folder.h>

#include <fovea/data/image.h>
#include <fovea/data/text_table.h>

namespace fovea::data {

LineFolder::LineFolder(std::string folder, LineGroup group) : folder_(std::move(folder)), group_(group) {
  const std::string path = folder_ + "/lines.tsv";
  const TextTable table = TextTable::read(path, '\t');
  const size_t file = table.column("file"), page = table.column("page"), line_no = table.column("line_no"), hand = table.column("hand"),
               text = table.column("text");
  for (int64_t row = 0; row < table.size(); ++row) {
    records_.push_back({table.at(row, file), table.at(row, page), table.at(row, hand), table.at(row, text), table.at(row, line_no)});
    check<FileError>(!records_.back().text.empty(), table.place(row), ": the text is empty");
    const std::string& name = records_.back().file;
    const bool is_name = !name.empty() && name.find('\0') == std::string::npos;
    check<FileError>(is_name, table.place(row), ": the file name is ", name.empty() ? "empty" : "cut by a NUL byte");
    try {
      decode_utf8(records_.back().text);
    } catch (const ValueError& error) {
      fail<FileError>(table.place(row), ": the text is not UTF-8 (", error.what(), ")");
    }
  }
  check<FileError>(!records_.empty(), path, ": has no lines");
}

const LineRecord& LineFolder::record(int64_t i) const {
  check_index(i, "LineFolder");
  return records_[static_cast<size_t>(i)];
}

std::string LineFolder::group(int64_t i) const { return group_ == LineGroup::page ? record(i).page : record(i).hand; }

Sample LineFolder::get(int64_t i) const {
  Sample sample;
  sample.name = path(i);
  sample.image = read_image_float(sample.name, 1);
  sample.text = record(i).text;
  sample.group = group(i);
  return sample;
}

Alphabet LineFolder::alphabet() const {
  std::vector<std::string> texts;
  for (const LineRecord& record : records_) texts.push_back(record.text);
  return Alphabet::of_texts(texts);
}

}  // namespace fovea::data
