// Pictures with boxes, listed in a CSV file: file,width,height,class,xmin,ymin,xmax,ymax,split, one row a box.
#pragma once

#include <string>
#include <vector>

#include <fovea/data/dataset.h>

namespace fovea::data {

// The pictures in the order of the rows. Coordinates are pixels from the upper left corner; xmax and ymax are exclusive. FileError, naming the line, for a
// box that is empty or lies outside its picture.
class BoxImages : public Dataset {
 public:
  // Files are looked for in images_folder. With `split`, only rows whose column of this name has this value; labels are the same for every split.
  BoxImages(const std::string& csv_path, std::string images_folder, const std::string& split = "");
  int64_t size() const override { return static_cast<int64_t>(pictures_.size()); }
  Sample get(int64_t i) const override;        // RGB; group: the file
  std::string group(int64_t i) const override;
  const std::vector<Box>& boxes(int64_t i) const;
  const std::vector<std::string>& classes() const { return classes_; }      // in the order of their names; Box::label is the place in it

 private:
  struct Picture {
    std::string file;
    int64_t width = 0, height = 0;
    std::vector<Box> boxes;
  };
  std::string folder_;
  std::vector<std::string> classes_;
  std::vector<Picture> pictures_;
};

}  // namespace fovea::data
