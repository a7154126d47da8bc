// What one output unit of a layer, or of a stack of layers, sees of the input: along height and along width.
//
// Windows compose exactly: size, stride and offset are AxisField's (kernels/geometry.h; Araujo, Norris & Sim 2019). Three things do not
// fit into a window:
// - a recurrent layer carries what came before (forward), after (reverse direction) or both; attention and global pooling see everything.
//   These are flags.
// - a layer that enlarges (transposed convolution, upsampling) moves by less than one input a unit: the stride is then the fraction
//   stride / upsampling, and size is the most that any unit sees.
// - windows that depend on the size of the input (adaptive pooling, resizing to a fixed size) have no field of their own; everything is
//   the bound that always holds.
// Statistics of normalisation layers are not counted: the field is that of the values, as everyone gives it.
//
// Layers over sequences (Conv1d, LSTM) are about the width; where a model folds the height into the channels before them, the height
// keeps its field.
#pragma once

#include <iosfwd>

#include <fovea/kernels/geometry.h>

namespace fovea::layers {

// Unit u sees inputs [offset + floor(u * stride / upsampling), ... + size - 1], and all inputs before or after them where the flags say so.
struct AxisReach {
  int64_t size = 1, stride = 1, offset = 0;
  int64_t upsampling = 1;
  bool all_before = false, all_after = false;

  static AxisReach window(const AxisField& field) { return {field.size, field.stride, field.offset}; }
  static AxisReach everything() { return {.all_before = true, .all_after = true}; }
  static AxisReach transposed(int64_t kernel, int64_t stride, int64_t padding, int64_t dilation);   // of a transposed convolution

  bool sees_everything() const { return all_before && all_after; }
  AxisReach then(const AxisReach& next) const;             // the reach of `next` after this one, in this one's input coordinates
  AxisReach united(const AxisReach& other) const;  // two branches that are added or concatenated; ValueError if their strides differ
  bool operator==(const AxisReach&) const = default;
};

struct ReceptiveField {
  AxisReach height, width;

  static ReceptiveField everything() { return {AxisReach::everything(), AxisReach::everything()}; }
  bool sees_everything() const { return height.sees_everything() && width.sees_everything(); }
  ReceptiveField then(const ReceptiveField& next) const { return {height.then(next.height), width.then(next.width)}; }
  ReceptiveField united(const ReceptiveField& other) const { return {height.united(other.height), width.united(other.width)}; }
  bool operator==(const ReceptiveField&) const = default;
};

std::ostream& operator<<(std::ostream& out, const AxisReach& reach);          // size 54, stride 4, offset -27
std::ostream& operator<<(std::ostream& out, const ReceptiveField& field);

}  // namespace fovea::layers
