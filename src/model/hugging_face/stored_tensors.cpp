#include "src/model/hugging_face/stored_tensors.hpp"

#include <algorithm>
#include <fstream>
#include <system_error>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "src/io/reading.hpp"
#include "src/model/hugging_face/computed_tensors.hpp"
#include "src/model/tensor_pipeline.hpp"

namespace flywheel::inline v0::hugging_face {

std::string with_number(std::string name, std::int64_t number) {
  if (const std::size_t at = name.find("{}"); at != name.npos) name.replace(at, 2, std::to_string(number));
  return name;
}

result<stored_tensors::way_back> stored_tensors::find(std::string_view weight, const shape& dims) const {
  way_back back{find_stored_name(names_.family(), weight), false, dims, {}, {}, {}};
  const auto unsupported = [&](const char* why) {
    return error{errc::unsupported, why, from_.path().string() + ": tensor " + io::detail::in_quotes(weight)};
  };
  if (back.name.row == nullptr)
    return unsupported("Hugging Face models of this architecture have no such tensor, so it cannot be written as one");
  const change how = back.name.row->how;
  if (how == nullptr) return back;
  if (how == expert) {
    if (dims.rank() != 3) return unsupported("experts must have three dimensions");
    back.experts = true;
    back.dims = {dims[1], dims[2]};
    return back;
  }
  auto placed = names_.place(back.name.plain, dims);
  if (!placed && dims.rank() == 2) {  // a convolution has an extent of 1 between
    back.dims = {dims[0], 1, dims[1]};
    placed = names_.place(back.name.plain, back.dims);
  }
  if (!placed) return std::move(placed).error();
  if (placed->size() != 1 || (*placed)[0].name != weight || (*placed)[0].dims != dims)
    return unsupported("unsupported: the way back of a tensor that was taken apart");
  placed_tensor& to = (*placed)[0];
  const std::int64_t cols = dims.rank() < 2 ? 1 : dims.cols();
  if (to.row) {
    FLYWHEEL_TRY(back.rows, inverse_of(to.row, dims.elements() / cols));
  }
  if (to.column) {
    FLYWHEEL_TRY(back.columns, inverse_of(to.column, cols));
  }
  back.value = std::move(to.inverse);
  return back;
}

void stored_tensors::add_computed(std::string name, dtype type, const shape& dims, std::int64_t cols,
                                  std::unique_ptr<io::computed_tensor> tensor) {
  const std::size_t row = row_bytes(type, cols);
  const std::int64_t rows = dims.elements() / cols;
  io::tensor_info made{std::move(name),
                       type,
                       dims,
                       0,
                       static_cast<std::uint64_t>(rows) * row,
                       static_cast<std::uint32_t>(from_.sources().size())};
  made.offset = computed_->add(std::move(tensor), rows, row);
  tensors_.push_back(std::move(made));
}

result<void> stored_tensors::add(std::string name, const io::tensor_info& tensor, const shape& dims,
                                 std::vector<std::int64_t> rows, std::vector<std::int64_t> columns,
                                 std::function<float(float)> value) {
  if (rows.empty() && columns.empty() && !value) {
    tensors_.push_back(tensor);
    tensors_.back().name = std::move(name);
    tensors_.back().dims = dims;
    return {};
  }
  const bool floats = tensor.type == dtype::f32 || tensor.type == dtype::f16 || tensor.type == dtype::bf16;
  if (!floats && !columns.empty())
    return error{errc::unsupported, "unsupported: columns of a quantized tensor in another order",
                 from_.path().string() + ": tensor " + io::detail::in_quotes(tensor.name)};
  // Blocks of quantized types lie within rows.
  gathered_rows how{.from = {tensor}, .cols = dims.rank() < 2 ? 1 : dims.cols()};
  const std::int64_t cols = how.cols;
  if (!rows.empty()) how.row = [rows = std::move(rows)](std::int64_t r) { return rows[static_cast<std::size_t>(r)]; };
  if (!columns.empty())
    how.column = [columns = std::move(columns)](std::int64_t c) { return columns[static_cast<std::size_t>(c)]; };
  const dtype type = value ? dtype::f32 : tensor.type;
  how.value = std::move(value);
  add_computed(std::move(name), type, dims, cols, make_gathered(from_, std::move(how), type));
  return {};
}

void stored_tensors::add_experts(const std::string& name, const io::tensor_info& tensor) {
  for (std::int64_t e = 0; e < tensor.dims[0]; ++e) {
    io::tensor_info one = tensor;
    one.name = with_number(name, e);
    one.dims = {tensor.dims[1], tensor.dims[2]};
    one.bytes = tensor.bytes / static_cast<std::uint64_t>(tensor.dims[0]);
    one.offset += static_cast<std::uint64_t>(e) * one.bytes;
    tensors_.push_back(std::move(one));
  }
}

void stored_tensors::add_transposed(std::string name, const io::tensor_info& tensor) {
  const std::int64_t n = tensor.dims[0], k = tensor.dims[1];
  io::tensor_info matrix = tensor;
  matrix.dims = {1, n, k};
  add_computed(std::move(name), tensor.type, {k, n}, n, make_transposed(from_, {std::move(matrix), 0, 1, k}));
}

result<std::string> stored_tensors::add_weight(const std::string& prefix, const io::tensor_info& tensor) {
  FLYWHEEL_TRY(way_back back, find(tensor.name, tensor.dims));
  std::string name = prefix + back.name.full;
  if (back.experts)
    add_experts(name, tensor);
  else
    FLYWHEEL_CHECK(add(name, tensor, back.dims, std::move(back.rows), std::move(back.columns), std::move(back.value)));
  return name;
}

result<io::archive> stored_tensors::finish() {
  std::ranges::sort(tensors_, {}, &io::tensor_info::name);  // the same file, however it was reached
  io::archive_content content;
  content.tensors = std::move(tensors_);
  const auto files = from_.sources();
  content.sources.assign(files.begin(), files.end());
  content.sources.push_back(computed_);
  content.path = from_.path();
  content.file_bytes = from_.file_bytes();
  content.files = from_.parts();
  return io::archive::assemble(std::move(content));
}

result<void> write_safetensors(const io::archive& from, const std::filesystem::path& out, std::span<const dtype> types,
                               const context& ctx, const control& control) {
  std::vector<io::tensor_plan> plans;
  for (std::size_t i = 0; i < types.size(); ++i)
    plans.push_back({from.tensors()[i].name, types[i], from.tensors()[i].dims, 0});
  io::metadata meta;
  meta.set("format", std::string("pt"));
  FLYWHEEL_TRY(io::writer file, io::writer::create(out, io::container::safetensors, meta, plans));
  std::uint64_t done = 0;
  for (std::size_t i = 0; i < types.size(); ++i) {
    const io::tensor_info& tensor = from.tensors()[i];
    FLYWHEEL_TRY(const auto reader, flywheel::detail::row_reader::create(from, tensor, ctx));
    flywheel::detail::row_reader::scratch own;
    const std::int64_t rows = tensor.dims.rows(), cols = tensor.dims.cols(), each = reader.rows_at_once();
    const std::size_t stored_row = row_bytes(tensor.type, cols), row = row_bytes(types[i], cols);
    std::vector<std::byte> bytes;
    for (std::int64_t first = 0; first < rows; first += each) {
      if (control.stopped()) return error{errc::cancelled, "writing was cancelled", out.string()};
      const std::int64_t n = std::min(each, rows - first);
      bytes.resize(static_cast<std::size_t>(n) * row);
      if (types[i] == tensor.type) {
        FLYWHEEL_CHECK(from.read(tensor, static_cast<std::uint64_t>(first) * stored_row, bytes));
      } else {
        FLYWHEEL_TRY(const std::span<const float> values, reader.read(first, n, own));
        FLYWHEEL_CHECK(flywheel::detail::encode_plainly(types[i], cols, values, bytes));
      }
      FLYWHEEL_CHECK(file.write(bytes));
      done += bytes.size();
      if (control.progress) control.progress(done, 0, tensor.name);
    }
    from.release(tensor);
  }
  return file.finish();
}

new_folder::new_folder(std::filesystem::path out) : out_(std::move(out)), temporary_(out_) { temporary_ += ".partial"; }
new_folder::new_folder(new_folder&& other) noexcept
    : out_(std::exchange(other.out_, {})), temporary_(std::exchange(other.temporary_, {})) {}
new_folder::~new_folder() {
  std::error_code ignored;
  if (!temporary_.empty()) std::filesystem::remove_all(temporary_, ignored);
}

result<new_folder> new_folder::create(const std::filesystem::path& out) {
  std::error_code failure;
  const std::filesystem::path place = out.has_filename() ? out : out.parent_path();  // "folder/" is "folder"
  if (std::filesystem::exists(place, failure) &&
      !(std::filesystem::is_directory(place, failure) && std::filesystem::is_empty(place, failure)))
    return error{errc::invalid_argument, "there is something of this name already; give another", out.string()};
  std::filesystem::path temporary = place;
  temporary += ".partial";
  if (!std::filesystem::create_directory(temporary, failure))
    return error{errc::io,
                 "the folder cannot be made" + (failure ? ": " + failure.message() : ", because it is there already"),
                 temporary.string()};
  return new_folder(place);
}

result<void> new_folder::write(std::string_view name, std::string_view text) const {
  std::ofstream file(temporary_ / name, std::ios::binary);
  file << text;
  file.close();
  if (!file) return error{errc::io, "the file cannot be written", (temporary_ / name).string()};
  return {};
}

result<void> new_folder::finish() {
  std::error_code failure;
  std::filesystem::remove(out_, failure);  // an empty folder
  std::filesystem::rename(temporary_, out_, failure);
  if (failure) return error{errc::io, "the folder cannot be renamed: " + failure.message(), out_.string()};
  temporary_.clear();
  return {};
}

}  // namespace flywheel::inline v0::hugging_face
