#include "flywheel/core/tensor.hpp"

#include <array>
#include <cstring>
#include <limits>
#include <vector>

#include "flywheel/core/dtype.hpp"
#include "support/catch.hpp"

using namespace flywheel;

namespace {

constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();

result<shape> made(std::vector<std::int64_t> dims) { return shape::of(dims); }

}  // namespace

TEST_CASE("dtypes are found by name in any case", "[dtype]") {
  for (const dtype_info& row : dtype_table) {
    CHECK(find_dtype(row.name) == &row);
    CHECK(info(row.type) == &row);
    CHECK(to_string(row.type) == row.name);
    CHECK(row.block_elements > 0);
    CHECK(row.block_bytes > 0);
    if (row.kind != dtype_kind::row) CHECK((row.kind == dtype_kind::block) == (row.block_elements > 1));
  }
  REQUIRE(find_dtype("q4_k"));
  CHECK(find_dtype("q4_k")->type == dtype::q4_k);
  CHECK(find_dtype("Q4_k") == find_dtype("Q4_K"));
  CHECK(find_dtype("q4") == nullptr);
  CHECK(find_dtype("") == nullptr);
  CHECK(find_dtype("Q4_K ") == nullptr);
}

TEST_CASE("a dtype that is not in the table is unknown, not an error", "[dtype]") {
  const auto strange = static_cast<dtype>(777);
  CHECK(info(strange) == nullptr);
  CHECK(to_string(strange) == "unknown");
  CHECK(row_bytes(strange, 64) == 0);
}

TEST_CASE("shapes are checked", "[tensor]") {
  const result<shape> s = made({2, 3, 4});
  REQUIRE(s);
  CHECK(s->rank() == 3);
  CHECK(s->elements() == 24);
  CHECK(s->cols() == 4);
  CHECK(s->rows() == 6);
  CHECK(s->to_string() == "[2, 3, 4]");
  CHECK(*s == shape{2, 3, 4});
  CHECK_FALSE(*s == shape{2, 3});
  CHECK_FALSE(*s == shape{2, 3, 5});

  CHECK(made({})->elements() == 1);
  CHECK(made({})->to_string() == "[]");
  CHECK(made({0, 5})->elements() == 0);
  CHECK(made({5, 0})->rows() == 0);
  CHECK(made({1, 1, 1, 1, 1, 1}));
  CHECK(made({1, 1, 1, 1, 1, 1, 1}).error().code == errc::invalid_argument);
  CHECK(made({2, -1}).error().code == errc::invalid_argument);
  CHECK(made({std::numeric_limits<std::int64_t>::min()}).error().code == errc::invalid_argument);
}

TEST_CASE("a number of elements that does not fit is refused", "[tensor]") {
  CHECK(made({most}));
  CHECK(made({most, 1, 1}));
  CHECK(made({most, 2}).error().code == errc::invalid_argument);
  CHECK(made({2, most}).error().code == errc::invalid_argument);
  CHECK(made({std::int64_t{1} << 32, std::int64_t{1} << 31}).error().code == errc::invalid_argument);
  CHECK(made({std::int64_t{1} << 31, std::int64_t{1} << 31}));
  // No elements at all, but a stride would overflow.
  CHECK(made({0, most, 2}).error().code == errc::invalid_argument);
  CHECK(made({most, 2, 0}).error().code == errc::invalid_argument);
}

TEST_CASE("dense bytes", "[tensor]") {
  CHECK(dense_bytes(dtype::f32, {8, 512}).value() == 16384);
  CHECK(dense_bytes(dtype::f32, {}).value() == 4);
  CHECK(dense_bytes(dtype::f32, {0, 512}).value() == 0);
  CHECK(dense_bytes(dtype::q4_k, {3, 512}).value() == 3 * 2 * 144);
  CHECK(dense_bytes(dtype::q4_k, {3, 0}).value() == 0);
  CHECK(dense_bytes(dtype::q8_0, {32}).value() == 34);
  CHECK(dense_bytes(dtype::q8_channel, {3, 100}).value() == 3 * 104);
  CHECK(dense_bytes(dtype::q4_channel, {2, 3, 100}).value() == 6 * 54);
  CHECK(dense_bytes(dtype::q4_channel, {3, 101}).error().code == errc::invalid_argument);
  CHECK(dense_bytes(dtype::q8_channel, {}).error().code == errc::invalid_argument);
  CHECK(dense_bytes(dtype::q4_k, {3, 128}).error().code == errc::invalid_argument);
  CHECK(dense_bytes(dtype::q4_k, {256, 3}).error().code == errc::invalid_argument);
  CHECK(dense_bytes(dtype::q4_k, {}).error().code == errc::invalid_argument);
  CHECK(dense_bytes(dtype::f32, {-1, 4}).error().code == errc::invalid_argument);
  CHECK(dense_bytes(static_cast<dtype>(777), {4}).error().code == errc::unsupported);
  // The elements fit 63 bits, the bytes do not.
  CHECK(dense_bytes(dtype::f64, {std::int64_t{1} << 30, std::int64_t{1} << 30}).error().code == errc::invalid_argument);
  CHECK(dense_bytes(dtype::f64, {0, std::int64_t{1} << 60}).error().code == errc::invalid_argument);
  // A shape built without a check cannot fool it either.
  CHECK(dense_bytes(dtype::u8, {most, most, most}).error().code == errc::invalid_argument);
}

TEST_CASE("views know rows, strides and density", "[tensor]") {
  std::array<float, 24> numbers{};
  for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<float>(i);
  auto* bytes = reinterpret_cast<std::byte*>(numbers.data());
  const mutable_tensor_view view(dtype::f32, {2, 3, 4}, bytes);
  CHECK(view.strides[0] == 48);
  CHECK(view.strides[1] == 16);
  CHECK(view.strides[2] == 4);
  CHECK(view.dense());
  CHECK(view.row(4) == bytes + 64);
  CHECK(view.as<float>().size() == 24);
  CHECK(view.as<float>()[23] == 23);
  view.as<float>()[0] = 5;
  CHECK(numbers[0] == 5);

  const tensor_view reads = view;
  CHECK(reads.dims == view.dims);
  CHECK(reads.strides == view.strides);
  CHECK(reads.data == view.data);

  tensor_view columns = reads;  // the first two columns of each row
  columns.dims = {2, 3, 2};
  CHECK_FALSE(columns.dense());

  const tensor_view blocks(dtype::q4_k, {3, 512}, nullptr);
  CHECK(blocks.strides[0] == 288);
  CHECK(blocks.strides[1] == 144);
  CHECK(tensor_view(dtype::f32, {}, bytes).as<float>().size() == 1);
}

TEST_CASE("tensors own their bytes", "[tensor]") {
  result<tensor> made = tensor::zeros(dtype::f32, {3, 4});
  REQUIRE(made);
  tensor t = *std::move(made);
  CHECK(t.bytes() == 48);
  for (const float x : t.view().as<float>()) CHECK(x == 0);
  t.view().as<float>()[5] = 2;

  result<tensor> copy = t.copy();
  REQUIRE(copy);
  t.view().as<float>()[5] = 3;
  CHECK(std::as_const(*copy).view().as<float>()[5] == 2);
  CHECK(copy->dims() == t.dims());
  CHECK(copy->type() == t.type());

  const tensor moved = std::move(t);
  CHECK(moved.view().as<float>()[5] == 3);

  CHECK(tensor::zeros(dtype::f32, {0, 4})->bytes() == 0);
  CHECK(tensor::zeros(dtype::f32, {0, 4})->copy());
  CHECK(tensor::zeros(dtype::q8_0, {4}).error().code == errc::invalid_argument);
  CHECK(tensor::zeros(dtype::u8, {std::int64_t{1} << 60}).error().code == errc::out_of_memory);
}

TEST_CASE("a tensor takes over a buffer that is large enough", "[tensor]") {
  CHECK(tensor::adopt(dtype::f32, {4}, buffer::zeros(16).value()));
  CHECK(tensor::adopt(dtype::f32, {4}, buffer::zeros(64).value()));
  CHECK(tensor::adopt(dtype::f32, {4}, buffer::zeros(15).value()).error().code == errc::invalid_argument);
  CHECK(tensor::adopt(dtype::q4_k, {4}, buffer::zeros(4096).value()).error().code == errc::invalid_argument);
}
