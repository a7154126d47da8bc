// Each instruction of kernels/cuda/core/ptx.h against what it must compute. The same kernels run over the model of CUDA and on a GPU, on the same inputs, and what is
// expected comes from one set of host functions: so on a GPU this program says whether the model that all kernels are tested on does what hardware does.
// Sums of products are compared bit for bit where they are exact (small integers), and within a bound elsewhere, as hardware's order of addition is not specified.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include <fovea/kernels/cuda/core/launch.h>
#include <fovea/kernels/cuda/core/ptx.h>

#include "device_buffer.h"
#include "host_cuda/ptx_semantics.h"

using namespace fovea::kernels::cuda;
using fovea::bfloat16;
using fovea::float16;
using fovea::testing::Buffer;

namespace {

std::mt19937 generator(7);
std::vector<float> random_numbers(size_t n) {
  std::normal_distribution<float> normal;
  std::vector<float> v(n);
  for (float& x : v) x = normal(generator);
  return v;
}
// Whose products and sums of a few thousand are exact in float32, and which float16, bfloat16 and TF32 hold.
std::vector<float> random_integers(size_t n) {
  std::uniform_int_distribution<int> small(-16, 16);
  std::vector<float> v(n);
  for (float& x : v) x = static_cast<float>(small(generator));
  return v;
}
std::vector<uint32_t> random_words(size_t n) {
  std::vector<uint32_t> v(n);
  for (uint32_t& x : v) x = static_cast<uint32_t>(generator());
  return v;
}

// ---- cp.async ----

constexpr int ring_stages = 3, ring_threads = 64;
struct Ring {
  alignas(16) uint32_t slots[ring_stages][ring_threads * 4];
};

// Adds the words of `tiles` tiles, of which every thread copies `bytes`; `words` of all tiles are there, the rest counts as zero. A thread reads what its neighbour
// has copied.
template <int bytes>
__global__ void ring_of_copies(const uint32_t* x, int words, int tiles, uint32_t* sums) {
  constexpr int words_each = bytes / 4;
  Ring& ring = shared<Ring>();
  const int thread = static_cast<int>(threadIdx.x), mine = thread * words_each, theirs = (thread + 1) % ring_threads * words_each;
  const auto start = [&](int tile) {
    if (tile < tiles) {
      const int first = tile * ring_threads * words_each + mine;
      const bool is_there = first + words_each <= words;
      copy_async<bytes>(&ring.slots[tile % ring_stages][mine], is_there ? x + first : x, is_there);
    }
    commit_copies();
  };
  for (int tile = 0; tile < ring_stages - 1; ++tile) start(tile);
  uint32_t sum = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    wait_for_copies<ring_stages - 2>();
    __syncthreads();
    start(tile + ring_stages - 1);
    for (int i = 0; i < words_each; ++i) sum += ring.slots[tile % ring_stages][theirs + i] * static_cast<uint32_t>(tile + 1);
  }
  sums[thread] = sum;
}

template <int bytes>
void check_ring(int tiles, int tail) {
  constexpr int words_each = bytes / 4;
  const int words = tiles * ring_threads * words_each - tail * words_each;
  const std::vector<uint32_t> x = random_words(static_cast<size_t>(words));
  const Buffer<uint32_t> on_device(x), sums(size_t{ring_threads});
  launch(nullptr, "ring_of_copies", {1, ring_threads, sizeof(Ring)}, ring_of_copies<bytes>, on_device.get(), words, tiles, sums.get());
  std::vector<uint32_t> expected(ring_threads, 0);
  for (int i = 0; i < words; ++i) {
    const int owner = i / words_each % ring_threads, tile = i / words_each / ring_threads;
    expected[static_cast<size_t>((owner + ring_threads - 1) % ring_threads)] += x[static_cast<size_t>(i)] * static_cast<uint32_t>(tile + 1);
  }
  CHECK(sums.values() == expected);
}

// ---- ldmatrix ----

struct Matrices {
  alignas(16) uint16_t elements[4][8][8];
};

// Registers of all lanes: those of x4, x4 transposed (4 each), x2 and x2 transposed (2 each).
__global__ void load_all_matrices(const uint16_t* x, uint32_t* registers) {
  Matrices& m = shared<Matrices>();
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) m.elements[i / 64][i / 8 % 8][i % 8] = x[i];
  __syncthreads();
  const uint16_t* row = m.elements[lane / 8][lane % 8];
  uint32_t plain[4], transposed[4], two[2], two_transposed[2];
  load_matrix_x4(plain, row);
  load_matrix_x4_transposed(transposed, row);
  load_matrix_x2(two, row);
  load_matrix_x2_transposed(two_transposed, row);
  uint32_t* r = registers + lane * 12;
  for (int i = 0; i < 4; ++i) r[i] = plain[i], r[4 + i] = transposed[i];
  for (int i = 0; i < 2; ++i) r[8 + i] = two[i], r[10 + i] = two_transposed[i];
}

// ---- mma.sync ----

template <class Half>
struct Operands {
  alignas(16) Half a[16][16], b[16][8], columns[8][16];      // b by rows, and by columns
};

// d += a b. b is loaded from where it lies by rows, or (is_by_columns) by columns.
template <class Half>
__global__ void multiply_halves(const Half* a, const Half* b, float* d, bool is_by_columns) {
  Operands<Half>& s = shared<Operands<Half>>();
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) s.a[i / 16][i % 16] = a[i];
  for (int i = lane; i < 128; i += 32) s.b[i / 8][i % 8] = s.columns[i % 8][i / 8] = b[i];
  __syncthreads();
  uint32_t left[4], right[2];
  load_matrix_x4(left, &s.a[lane % 16][lane / 16 * 8]);
  if (is_by_columns) load_matrix_x2(right, &s.columns[lane % 8][lane / 8 % 2 * 8]);
  else load_matrix_x2_transposed(right, s.b[lane % 16]);
  float sums[4];
  const int row = lane / 4, column = lane % 4 * 2;
  for (int i = 0; i < 4; ++i) sums[i] = d[(row + i / 2 * 8) * 8 + column + i % 2];
  multiply(sums, left, right, Half{});
  for (int i = 0; i < 4; ++i) d[(row + i / 2 * 8) * 8 + column + i % 2] = sums[i];
}

__global__ void multiply_floats(const uint32_t* a, const uint32_t* b, float* d) {
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  const uint32_t left[4] = {a[g * 8 + t], a[(g + 8) * 8 + t], a[g * 8 + t + 4], a[(g + 8) * 8 + t + 4]};
  const uint32_t right[2] = {b[t * 8 + g], b[(t + 4) * 8 + g]};
  float sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = d[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
  multiply_tf32(sums, left, right);
  for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sums[i];
}

__global__ void convert_to_tf32(const float* x, uint32_t* y, int n) {
  for (int64_t i = global_thread(); i < n; i += global_threads()) y[i] = to_tf32(x[i]);
}

template <class T>
std::vector<T> converted(const std::vector<float>& x) {
  std::vector<T> y;
  for (const float v : x) y.push_back(T(v));
  return y;
}

// d + a b for a [16,inner], b [inner,8], from the values that the elements really have; and the sum of the products' magnitudes, for the bound.
struct Exact {
  double value, magnitude;
};
template <class T>
std::vector<Exact> exact_product(const std::vector<T>& a, const std::vector<T>& b, const std::vector<float>& d, int inner) {
  std::vector<Exact> result;
  for (int i = 0; i < 128; ++i) {
    Exact e{d[static_cast<size_t>(i)], std::abs(d[static_cast<size_t>(i)])};
    for (int k = 0; k < inner; ++k) {
      const double product = double{static_cast<float>(a[static_cast<size_t>(i / 8 * inner + k)])} * static_cast<float>(b[static_cast<size_t>(k * 8 + i % 8)]);
      e.value += product;
      e.magnitude += std::abs(product);
    }
    result.push_back(e);
  }
  return result;
}

// Hardware may cut off what lies below the last bit of the largest product: an error of up to 2^-23 of it for each product, and the same for rounding.
void check_sums(const std::vector<float>& got, const std::vector<Exact>& want, bool is_exact) {
  REQUIRE(got.size() == want.size());
  int wrong = 0;
  for (size_t i = 0; i < got.size(); ++i)
    wrong += is_exact ? got[i] != static_cast<float>(want[i].value) : !(std::abs(got[i] - want[i].value) <= 2e-6 * want[i].magnitude);
  CHECK(wrong == 0);
}

template <class Half>
void check_halves(bool is_exact) {
  const std::vector<Half> a = converted<Half>(is_exact ? random_integers(256) : random_numbers(256));
  const std::vector<Half> b = converted<Half>(is_exact ? random_integers(128) : random_numbers(128));
  const std::vector<float> d = is_exact ? random_integers(128) : random_numbers(128);
  for (const bool is_by_columns : {false, true}) {
    CAPTURE(is_by_columns);
    const Buffer<Half> left(a), right(b);
    const Buffer<float> sums(d);
    launch(nullptr, "multiply_halves", {1, 32, sizeof(Operands<Half>)}, multiply_halves<Half>, left.get(), right.get(), sums.get(), is_by_columns);
    check_sums(sums.values(), exact_product(a, b, d, 16), is_exact);
  }
}

}  // namespace

TEST_CASE("cp.async: a ring of tiles is added up, and what is not there counts as zero") {
  for (const int tiles : {1, 2, 3, 8}) {
    CAPTURE(tiles);
    for (const int tail : {0, 1, 37}) {
      check_ring<4>(tiles, tail);
      check_ring<8>(tiles, tail);
      check_ring<16>(tiles, tail);
    }
  }
}

TEST_CASE("ldmatrix: every lane gets the elements that the PTX ISA says") {
  std::vector<uint16_t> x(256);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint16_t>(i * 251 + 7);
  const Buffer<uint16_t> on_device(x);
  const Buffer<uint32_t> registers(size_t{32 * 12});
  launch(nullptr, "load_all_matrices", {1, 32, sizeof(Matrices)}, load_all_matrices, on_device.get(), registers.get());
  const std::vector<uint32_t> got = registers.values();
  const auto element = [&](int matrix, int row, int column) { return x[static_cast<size_t>(matrix * 64 + row * 8 + column)]; };
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 12; ++i) {
      CAPTURE(lane);
      CAPTURE(i);
      const bool is_transposed = (i >= 4 && i < 8) || i >= 10;
      const int matrix = i < 8 ? i % 4 : i % 2, row = lane / 4, column = lane % 4 * 2;
      const uint32_t low = is_transposed ? element(matrix, column, row) : element(matrix, row, column);
      const uint32_t high = is_transposed ? element(matrix, column + 1, row) : element(matrix, row, column + 1);
      CHECK(got[static_cast<size_t>(lane * 12 + i)] == (low | high << 16));
    }
}

TEST_CASE("mma.sync: products of float16 and bfloat16 tiles, exact for small integers and close for random numbers") {
  for (int round = 0; round < 10; ++round)
    for (const bool is_exact : {true, false}) {
      CAPTURE(is_exact);
      check_halves<float16>(is_exact);
      check_halves<bfloat16>(is_exact);
    }
}

TEST_CASE("mma.sync: products of TF32 tiles look at the upper 19 bits only") {
  for (int round = 0; round < 10; ++round)
    for (const bool is_exact : {true, false}) {
      CAPTURE(is_exact);
      const std::vector<float> a = is_exact ? random_integers(128) : random_numbers(128), b = is_exact ? random_integers(64) : random_numbers(64);
      const std::vector<float> d = is_exact ? random_integers(128) : random_numbers(128);
      std::vector<uint32_t> a_bits, b_bits;                  // with rubbish where nothing should look
      std::vector<float> a_cut, b_cut;
      for (const float v : a) a_bits.push_back((std::bit_cast<uint32_t>(v) & 0xffffe000u) | (static_cast<uint32_t>(generator()) & 0x1fffu));
      for (const float v : b) b_bits.push_back((std::bit_cast<uint32_t>(v) & 0xffffe000u) | (static_cast<uint32_t>(generator()) & 0x1fffu));
      for (const uint32_t v : a_bits) a_cut.push_back(host_cuda::as_tf32(v));
      for (const uint32_t v : b_bits) b_cut.push_back(host_cuda::as_tf32(v));
      const Buffer<uint32_t> left(a_bits), right(b_bits);
      const Buffer<float> sums(d);
      launch(nullptr, "multiply_floats", {1, 32}, multiply_floats, left.get(), right.get(), sums.get());
      check_sums(sums.values(), exact_product(a_cut, b_cut, d, 8), is_exact);
    }
}

TEST_CASE("cvt.rna.tf32: rounds to the nearest, ties away from zero, bit for bit") {
  std::vector<float> x;
  for (const uint32_t bits : random_words(100000)) x.push_back(std::bit_cast<float>(bits));
  for (const uint32_t bits : {0u, 0x80000000u, 0x3f801000u, 0xbf801000u, 0x3f800fffu, 0x3f801001u, 0x3f803000u, 0x7f7fffffu, 0x7f800000u, 0xff800000u, 1u, 0xfffu, 0x1000u})
    x.push_back(std::bit_cast<float>(bits));
  const Buffer<float> on_device(x);
  const Buffer<uint32_t> rounded(x.size());
  launch(nullptr, "convert_to_tf32", grid_for(static_cast<int64_t>(x.size())), convert_to_tf32, on_device.get(), rounded.get(), static_cast<int>(x.size()));
  const std::vector<uint32_t> got = rounded.values();
  int wrong = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const float y = host_cuda::as_tf32(got[i]);
    wrong += std::isnan(x[i]) ? !std::isnan(y) : std::bit_cast<uint32_t>(y) != host_cuda::round_to_tf32(x[i]);
    if (!std::isfinite(x[i]) || std::abs(x[i]) < 1e-30f || !std::isfinite(y)) continue;
    wrong += !(std::abs(double{y} - x[i]) <= std::ldexp(std::abs(double{x[i]}), -11));        // what rounding means, in other words
  }
  CHECK(wrong == 0);
  CHECK(got[x.size() - 11] == 0x3f802000u);       // a tie
}
