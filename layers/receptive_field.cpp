#include <fovea/layers/receptive_field.h>

#include <algorithm>
#include <numeric>
#include <ostream>

#include <fovea/kernels/error.h>

namespace fovea::layers {
namespace {

int64_t floor_divide(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }
int64_t ceil_divide(int64_t a, int64_t b) { return -floor_divide(-a, b); }

}  // namespace

// Output u gets its values from inputs ceil((u + padding - reach) / stride) to floor((u + padding) / stride), where reach = (kernel - 1) *
// dilation. Units u and u + stride see the same but for one step, so the first `stride` units bound them all.
AxisReach AxisReach::transposed(int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t first = ceil_divide(padding - (kernel - 1) * dilation, stride), last = floor_divide(stride - 1 + padding, stride);
  return {.size = last - first + 1, .stride = 1, .offset = first, .upsampling = stride};
}

AxisReach AxisReach::then(const AxisReach& next) const {
  AxisReach result;
  result.size = size + ceil_divide((next.size - 1) * stride, upsampling);
  result.offset = offset + floor_divide(next.offset * stride, upsampling);
  const int64_t common = std::gcd(stride * next.stride, upsampling * next.upsampling);
  result.stride = stride * next.stride / common;
  result.upsampling = upsampling * next.upsampling / common;
  result.all_before = all_before || next.all_before;
  result.all_after = all_after || next.all_after;
  return result;
}

AxisReach AxisReach::united(const AxisReach& other) const {
  check<ValueError>(stride == other.stride && upsampling == other.upsampling, "receptive_field: branches that move by ", stride, "/",
                    upsampling, " and by ", other.stride, "/", other.upsampling, " inputs a unit do not meet");
  AxisReach result = *this;
  result.offset = std::min(offset, other.offset);
  result.size = std::max(offset + size, other.offset + other.size) - result.offset;
  result.all_before = all_before || other.all_before;
  result.all_after = all_after || other.all_after;
  return result;
}

std::ostream& operator<<(std::ostream& out, const AxisReach& reach) {
  if (reach.sees_everything()) return out << "everything";
  out << "size " << reach.size << ", stride " << reach.stride;
  if (reach.upsampling != 1) out << "/" << reach.upsampling;
  out << ", offset " << reach.offset;
  if (reach.all_before) out << " and all before";
  if (reach.all_after) out << " and all after";
  return out;
}

std::ostream& operator<<(std::ostream& out, const ReceptiveField& field) {
  return out << "height: " << field.height << "; width: " << field.width;
}

}  // namespace fovea::layers
