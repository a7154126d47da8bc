#include <fovea/data/image_folder.h>

#include <algorithm>
#include <cctype>
#include <filesystem>

#include <fovea/data/image.h>

namespace fovea::data {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> sorted_entries(const fs::path& folder) {
  std::error_code error;
  std::vector<fs::path> entries;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) entries.push_back(entry->path());
  check<FileError>(!error, "cannot read the folder \"", folder.string(), "\": ", error.message());
  std::sort(entries.begin(), entries.end());
  return entries;
}

bool is_picture(const fs::path& path) {
  std::string ending = path.extension().string();
  std::transform(ending.begin(), ending.end(), ending.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return ending == ".png" || ending == ".jpg" || ending == ".jpeg" || ending == ".bmp";
}

}  // namespace

ImageFolder::ImageFolder(const std::string& folder, int64_t channels) : channels_(channels) {
  for (const fs::path& subfolder : sorted_entries(folder)) {
    if (!fs::is_directory(subfolder)) continue;
    const auto label = static_cast<int64_t>(classes_.size());
    classes_.push_back(subfolder.filename().string());
    for (const fs::path& path : sorted_entries(subfolder))
      if (is_picture(path)) files_.push_back({path.string(), label});
  }
  check<FileError>(!files_.empty(), "ImageFolder: ", folder, " has no pictures; expected a folder for each class with .png, .jpg, .jpeg or .bmp files");
}

Sample ImageFolder::get(int64_t i) const {
  Sample sample;
  sample.name = path(i);
  sample.image = read_image_float(sample.name, channels_);
  sample.label = label(i);
  return sample;
}

const std::string& ImageFolder::path(int64_t i) const {
  check_index(i, "ImageFolder");
  return files_[static_cast<size_t>(i)].path;
}

int64_t ImageFolder::label(int64_t i) const {
  check_index(i, "ImageFolder");
  return files_[static_cast<size_t>(i)].label;
}

}  // namespace fovea::data
