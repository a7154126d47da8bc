// Indexing must pick what NumPy picks. x = arange(24).reshape(2, 3, 4) throughout; the expected values are NumPy's.
#include <doctest/doctest.h>

#include <fovea/autograd/gradcheck.h>
#include <fovea/autograd/indexing.h>
#include <fovea/autograd/shape.h>
#include <fovea/tensor/creation.h>

using namespace fovea;

namespace {

Tensor cube() { return reshape(arange(24), {2, 3, 4}); }

void check_values(const Tensor& got, const Shape& shape, const std::vector<int64_t>& expected) {
  CHECK(got.shape() == shape);
  CHECK(got.to_vector<int64_t>() == expected);
}

}  // namespace

TEST_CASE("indexing: integers take axes out, from the front and from the back") {
  check_values(cube()[1], {3, 4}, {12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23});
  check_values(cube()[{1, -1}], {4}, {20, 21, 22, 23});
  check_values(cube()[{-1, 0, -2}], {}, {14});
}

TEST_CASE("indexing: slices cut as Python's do") {
  check_values(cube()[{0, 1, slice(1, 3)}], {2}, {5, 6});
  check_values(cube()[{0, 1, slice(2)}], {2}, {4, 5});
  check_values(cube()[{0, 1, slice_from(-2)}], {2}, {6, 7});
  check_values(cube()[{0, slice(), 0}], {3}, {0, 4, 8});
  check_values(cube()[{0, 1, Slice{{}, {}, -2}}], {2}, {7, 5});
  check_values(cube()[{0, 1, slice(5, 2)}], {0}, {});
}

TEST_CASE("indexing: ellipsis stands for the axes not named, newaxis adds one") {
  check_values(cube()[{ellipsis, 3}], {2, 3}, {3, 7, 11, 15, 19, 23});
  check_values(cube()[{1, ellipsis, 3}], {3}, {15, 19, 23});
  check_values(cube()[{0, newaxis, slice(1, 2), ellipsis, newaxis}], {1, 1, 4, 1}, {4, 5, 6, 7});
}

TEST_CASE("indexing: views share memory with the tensor") {
  Tensor x = zeros({2, 3});
  const Tensor row = x[1];
  CHECK(row.storage() == x.storage());
  CHECK(row.offset() == 3);
}

TEST_CASE("indexing: integer tensors pick along an axis, negative positions count from the back") {
  const Tensor pick = from_vector(std::vector<int64_t>{2, 0, -1});
  check_values(cube()[{0, pick}], {3, 4}, {8, 9, 10, 11, 0, 1, 2, 3, 8, 9, 10, 11});
  check_values(cube()[{ellipsis, pick}], {2, 3, 3}, {2, 0, 3, 6, 4, 7, 10, 8, 11, 14, 12, 15, 18, 16, 19, 22, 20, 23});
  check_values(cube()[{0, 1, from_vector(std::vector<int64_t>{3, 3, 1, 1}, {2, 2})}], {2, 2}, {7, 7, 5, 5});
  check_values(cube()[from_vector(std::vector<int64_t>{})], {0, 3, 4}, {});
}

TEST_CASE("indexing: index tensors are broadcast together; neighbours stay in place, others move to the front") {
  const Tensor rows = from_vector(std::vector<int64_t>{0, 2}, {2, 1}), columns = from_vector(std::vector<int64_t>{1, 3, 0});
  check_values(cube()[{1, rows, columns}], {2, 3}, {13, 15, 12, 21, 23, 20});
  check_values(cube()[{slice(), rows, columns}], {2, 2, 3}, {1, 3, 0, 9, 11, 8, 13, 15, 12, 21, 23, 20});
  const Tensor blocks = from_vector(std::vector<int64_t>{1, 0});
  check_values(cube()[{blocks, slice(), from_vector(std::vector<int64_t>{0, 3})}], {2, 3}, {12, 16, 20, 3, 7, 11});
}

TEST_CASE("indexing: a mask picks where it is true, and stands for as many axes as it has") {
  Tensor x = cube();
  const Tensor rows = to(from_vector(std::vector<uint8_t>{1, 0, 0, 1, 0, 1}, {2, 3}), DType::boolean);
  check_values(x[rows], {3, 4}, {0, 1, 2, 3, 12, 13, 14, 15, 20, 21, 22, 23});
  const Tensor last = to(from_vector(std::vector<uint8_t>{0, 1, 1, 0}), DType::boolean);
  check_values(x[{1, 0, last}], {2}, {13, 14});
  check_values(x[to(zeros({2, 3, 4}), DType::boolean)], {0}, {});
}

TEST_CASE("indexing: gradients go back to the picked elements, added up where one was picked twice") {
  manual_seed(3);
  const Tensor x = randn({2, 3, 4}, DType::float64).set_requires_grad();
  const Tensor pick = from_vector(std::vector<int64_t>{2, 0, 2});
  auto picks = [&](const std::vector<Tensor>& in) { return in[0][{ellipsis, pick, slice(1, 4, 2)}]; };
  CHECK(gradcheck(picks, {x}) == "");
  CHECK(gradgradcheck(picks, {x}) == "");
  auto cuts = [&](const std::vector<Tensor>& in) { return in[0][{slice(), newaxis, 1, Slice{{}, {}, -1}}]; };
  CHECK(gradcheck(cuts, {x}) == "");
  CHECK(gradgradcheck(cuts, {x}) == "");
}

TEST_CASE("indexing: errors say which axis and what is wrong") {
  const Tensor x = cube();
  CHECK_THROWS_AS(x[2], IndexError);
  CHECK_THROWS_AS((x[{0, 0, 0, 0}]), IndexError);
  CHECK_THROWS_AS((x[{ellipsis, ellipsis}]), IndexError);
  CHECK_THROWS_WITH_AS((x[{0, from_vector(std::vector<int64_t>{3})}]), "index: position 3 is out of range for axis 1 of size 3", IndexError);
  CHECK_THROWS_AS(x[to(ones({3, 3}), DType::boolean)], ShapeError);
  CHECK_THROWS_AS(x[ones({2})], DTypeError);
}
