#include <fovea/data/box_csv.h>

#include <algorithm>
#include <set>
#include <unordered_map>

#include <fovea/data/image.h>
#include <fovea/data/text_table.h>

namespace fovea::data {
namespace {

Box read_box(const TextTable& table, int64_t row, int64_t label) {
  const auto number = [&](const char* name) { return static_cast<float>(table.number(row, table.column(name))); };
  const Box box = {number("xmin"), number("ymin"), number("xmax"), number("ymax"), label};
  const float width = number("width"), height = number("height");
  check<FileError>(box.left >= 0 && box.left < box.right && box.right <= width && box.top >= 0 && box.top < box.bottom && box.bottom <= height,
                   table.place(row), ": the box ", box.left, ",", box.top, " .. ", box.right, ",", box.bottom, " is empty or not within ", width, " x ", height);
  return box;
}

}  // namespace

BoxImages::BoxImages(const std::string& csv_path, std::string images_folder, const std::string& split) : folder_(std::move(images_folder)) {
  const TextTable table = TextTable::read(csv_path, ',');
  const size_t file = table.column("file"), name = table.column("class"), part = split.empty() ? 0 : table.column("split");
  std::set<std::string> names;
  for (int64_t row = 0; row < table.size(); ++row) names.insert(table.at(row, name));
  classes_.assign(names.begin(), names.end());
  std::unordered_map<std::string, size_t> place;
  for (int64_t row = 0; row < table.size(); ++row) {
    if (!split.empty() && table.at(row, part) != split) continue;
    const auto [found, is_new] = place.emplace(table.at(row, file), pictures_.size());
    if (is_new) {
      pictures_.push_back({table.at(row, file), static_cast<int64_t>(table.number(row, table.column("width"))),
                           static_cast<int64_t>(table.number(row, table.column("height"))), {}});
    }
    const auto label = std::lower_bound(classes_.begin(), classes_.end(), table.at(row, name)) - classes_.begin();
    pictures_[found->second].boxes.push_back(read_box(table, row, label));
  }
  check<FileError>(!pictures_.empty(), csv_path, ": has no boxes", split.empty() ? "" : " of the split ", split);
}

Sample BoxImages::get(int64_t i) const {
  const std::vector<Box>& own = boxes(i);
  const Picture& picture = pictures_[static_cast<size_t>(i)];
  Sample sample;
  sample.name = folder_ + "/" + picture.file;
  sample.image = read_image_float(sample.name, 3);
  check<FileError>(sample.image.size(1) == picture.height && sample.image.size(2) == picture.width, sample.name, ": is ",
                   sample.image.size(2), " x ", sample.image.size(1), " pixels, but its boxes were drawn on ", picture.width, " x ", picture.height);
  sample.boxes = own;
  sample.group = picture.file;
  return sample;
}

std::string BoxImages::group(int64_t i) const {
  check_index(i, "BoxImages");
  return pictures_[static_cast<size_t>(i)].file;
}

const std::vector<Box>& BoxImages::boxes(int64_t i) const {
  check_index(i, "BoxImages");
  return pictures_[static_cast<size_t>(i)].boxes;
}

}  // namespace fovea::data
