// Folders of pictures, one folder a class.
#pragma once

#include <string>
#include <vector>

#include <fovea/data/dataset.h>

namespace fovea::data {

// The classes are the folder's folders in the order of their names; their pictures (.png, .jpg, .jpeg, .bmp) come in the order of their names.
class ImageFolder : public Dataset {
 public:
  explicit ImageFolder(const std::string& folder, int64_t channels = 3);      // channels: 1 grey, 3 RGB. FileError if there is no picture
  int64_t size() const override { return static_cast<int64_t>(files_.size()); }
  Sample get(int64_t i) const override;
  std::string group(int64_t) const override { return ""; }
  const std::vector<std::string>& classes() const { return classes_; }
  const std::string& path(int64_t i) const;
  int64_t label(int64_t i) const;

 private:
  struct File {
    std::string path;
    int64_t label;
  };
  int64_t channels_;
  std::vector<std::string> classes_;
  std::vector<File> files_;
};

}  // namespace fovea::data
