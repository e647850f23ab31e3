#include "src/model/tensor_pipeline.hpp"

#include <algorithm>
#include <system_error>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "flywheel/formats/formats.hpp"
#include "src/core/run_tasks.hpp"
#include "src/io/byte_source.hpp"
#include "src/io/output_file.hpp"
#include "src/model/device_safetensors.hpp"

namespace flywheel::inline v0::detail {
namespace {

/// Old and new bytes are not in memory at once.
void resize_piece(std::vector<std::byte>& bytes, std::size_t n) {
  if (bytes.capacity() < n) bytes = {};
  bytes.resize(n);
}

std::uint64_t stored_bytes(const io::tensor_plan& tensor) noexcept {
  if (tensor.bytes > 0) return tensor.bytes;
  return static_cast<std::uint64_t>(tensor.dims.rows()) * row_bytes(tensor.type, tensor.dims.cols());
}

/// A name beside the file; when that is a link: beside the one it leads to, as the writer has it.
std::filesystem::path beside(const std::filesystem::path& path, const char* suffix) {
  std::error_code failure;
  std::filesystem::path file = std::filesystem::canonical(path, failure);
  if (failure) file = path;
  file += suffix;
  return file;
}

/// "1.5 MiB", or whole bytes below 1 MiB.
std::string in_mib(std::uint64_t bytes) {
  if (bytes < (1U << 20)) return std::to_string(bytes) + " bytes";
  return std::to_string(bytes >> 20) + "." + std::to_string((bytes >> 10) % 1024 * 10 / 1024) + " MiB";
}

/// Error: io, when the folder says that it has less room than that. What the file to go on with has takes none.
result<void> check_space(const std::filesystem::path& out, std::uint64_t bytes, bool resumable) {
  std::error_code failure;
  const std::filesystem::path folder = out.has_parent_path() ? out.parent_path() : ".";
  const std::filesystem::space_info space = std::filesystem::space(folder, failure);
  if (failure) return {};
  const std::uint64_t there = resumable ? io::detail::occupied_bytes(beside(out, ".partial")) : 0;
  if (space.available + there >= bytes) return {};
  return error{errc::io,
               "the file will have " + in_mib(bytes) + ", but only " + in_mib(space.available) + " are free there",
               out.string()};
}

}  // namespace

result<void> check_apart(const io::archive& from, const std::filesystem::path& out, bool resumable) {
  std::vector<std::filesystem::path> inputs = io::detail::files_of(from);
  inputs.push_back(from.path());
  std::error_code ignored;
  for (std::filesystem::directory_iterator it(from.path(), ignored), end; !ignored && it != end; it.increment(ignored))
    // What an earlier run wrote into the folder is none of the model's: its weights are in safetensors files.
    if (const auto kind = it->path().extension(); kind != ".gguf" && kind != ".partial" && kind != ".journal")
      inputs.push_back(it->path());
  for (const char* suffix : {"", ".partial", ".partial.journal"}) {
    if (*suffix != 0 && !resumable) break;
    const std::filesystem::path written = beside(out, suffix);
    for (const std::filesystem::path& input : inputs)
      if (std::error_code failure; std::filesystem::equivalent(input, written, failure))
        return error{errc::invalid_argument,
                     (*suffix == 0 ? "the model cannot be written over itself"
                                   : "work in progress would be written over the model in " + written.string()) +
                         std::string("; give another name"),
                     out.string()};
  }
  return {};
}

result<void> encode_plainly(dtype type, std::int64_t cols, std::span<const float> rows,
                            std::span<std::byte> stored) noexcept {
  const formats::encode_fn encode = formats::find_encoder(type);
  if (encode == nullptr) return error{errc::unsupported, "no encoder", "type"};
  const std::size_t n = rows.size() / static_cast<std::size_t>(cols), bytes = row_bytes(type, cols);
  for (std::size_t r = 0; r < n; ++r)
    encode(rows.data() + r * static_cast<std::size_t>(cols), cols, stored.data() + r * bytes);
  return {};
}

result<tensor_pipeline> tensor_pipeline::create(const io::archive& from, const std::filesystem::path& out,
                                                io::metadata meta, std::span<const dtype> types,
                                                std::optional<std::string> resume_key, const context& ctx,
                                                const flywheel::control& control) {
  std::vector<io::tensor_plan> plans;
  for (std::size_t i = 0; i < types.size(); ++i) {
    const io::tensor_info& tensor = from.tensors()[i];
    plans.push_back({tensor.name, types[i], tensor.dims, types[i] == tensor.type ? tensor.bytes : 0});
  }
  FLYWHEEL_CHECK(check_apart(from, out, resume_key.has_value()));
  FLYWHEEL_TRY(tensor_pipeline made,
               begin(std::move(plans), out, std::move(meta), std::move(resume_key), ctx, control));
  made.from_ = from;
  return made;
}

result<tensor_pipeline> tensor_pipeline::create(std::vector<io::tensor_plan> tensors, const std::filesystem::path& out,
                                                io::metadata meta, const context& ctx,
                                                const flywheel::control& control) {
  return begin(std::move(tensors), out, std::move(meta), std::nullopt, ctx, control);
}

result<tensor_pipeline> tensor_pipeline::begin(std::vector<io::tensor_plan> tensors, const std::filesystem::path& out,
                                               io::metadata meta, std::optional<std::string> resume_key,
                                               const context& ctx, const flywheel::control& control) {
  tensor_pipeline made;
  made.out_ = out;
  made.tensors_ = std::move(tensors);
  made.ctx_ = ctx;
  made.control_ = control;
  made.safetensors_ = out.extension() == ".safetensors";
  made.resumable_ = resume_key.has_value();
  std::vector<io::tensor_plan> plans;
  for (const io::tensor_plan& tensor : made.tensors_) {
    made.total_ += stored_bytes(tensor);
    made.first_plan_.push_back(plans.size());
    if (made.safetensors_)
      plan_safetensors(tensor, plans);
    else
      plans.push_back(tensor);
  }
  made.first_plan_.push_back(plans.size());
  if (made.safetensors_) {
    FLYWHEEL_TRY(meta, to_strings(meta));
  }
  FLYWHEEL_CHECK(check_space(out, made.total_, made.resumable_));
  const io::container kind = made.safetensors_ ? io::container::safetensors : io::container::gguf;
  auto writer =
      resume_key ? io::writer::resume(out, kind, meta, plans, *resume_key) : io::writer::create(out, kind, meta, plans);
  if (!writer) return std::move(writer).error();
  made.writer_ = *std::move(writer);
  return made;
}

bool tensor_pipeline::complete(std::size_t tensor) const noexcept {
  for (std::size_t plan = first_plan_[tensor]; plan < first_plan_[tensor + 1]; ++plan)
    if (!writer_->complete(plan)) return false;
  return true;
}

void tensor_pipeline::pass(std::size_t tensor) noexcept { done_ += stored_bytes(tensors_[tensor]); }

result<void> tensor_pipeline::write_pending() {
  if (!pending_) return {};
  piece& p = *pending_;
  if (resumable_ && selected_ != p.tensor) FLYWHEEL_CHECK(writer_->select(first_plan_[p.tensor]));
  selected_ = p.tensor;
  std::span<const std::byte> bytes = p.bytes;
  const dtype type = tensors_[p.tensor].type;
  if (safetensors_ && is_device_format(type)) {
    const std::int64_t cols = tensors_[p.tensor].dims.cols();
    codes_.clear();
    take_apart(type, cols, static_cast<std::int64_t>(bytes.size() / row_bytes(type, cols)), bytes.data(), codes_,
               scales_);
    bytes = codes_;
  }
  FLYWHEEL_CHECK(writer_->write(bytes));
  if (p.last) {
    FLYWHEEL_CHECK(writer_->write(scales_));  // after all codes
    scales_.clear();
  }
  spare_ = std::move(p.bytes);
  pending_.reset();
  return {};
}

result<void> tensor_pipeline::step(piece next, std::size_t chunks,
                                   function_ref<result<void>(std::size_t, piece&, unsigned)> make) {
  if (control_.stopped()) return error{errc::cancelled, "writing was cancelled", out_.string()};
  executor& pool = ctx_.executor();
  const auto workers = static_cast<unsigned>(std::min<std::size_t>(pool.concurrency(), chunks + 1));
  FLYWHEEL_CHECK(run_tasks(pool, workers, chunks + 1, [&](std::size_t task, unsigned worker) {
    return task == 0 ? write_pending() : make(task - 1, next, worker);
  }));
  done_ += next.bytes.size();
  const std::size_t tensor = next.tensor;
  pending_ = std::move(next);
  if (control_.progress) control_.progress(done_, total_, tensors_[tensor].name);
  return {};
}

result<void> tensor_pipeline::copy(std::size_t tensor, const io::archive& from, const io::tensor_info& info) {
  // What is computed on reading comes in whole rows, and may be kept for the next ones; what is mapped is given back.
  const io::byte_source& source = *from.sources()[info.part];
  const bool mapped = !source.mapped().empty();
  const std::uint64_t row = std::max<std::uint64_t>(1, row_bytes(info.type, info.dims.cols()));
  const std::uint64_t size =
      std::max<std::uint64_t>(1, static_cast<std::uint64_t>(tensor_pipeline::piece_bytes) / row) * row;
  for (std::uint64_t at = 0; at < info.bytes; at += size) {
    piece next{tensor, std::move(spare_), at + size >= info.bytes};
    const std::uint64_t n = std::min(size, info.bytes - at);
    resize_piece(next.bytes, static_cast<std::size_t>(n));
    FLYWHEEL_CHECK(
        step(std::move(next), 1, [&](std::size_t, piece& p, unsigned) { return from.read(info, at, p.bytes); }));
    if (mapped) source.release(info.offset + at, n);
  }
  from.release(info);
  return {};
}

result<void> tensor_pipeline::make(std::size_t tensor, std::int64_t per_chunk, std::size_t row_cost, make_fn make) {
  const io::tensor_plan& plan = tensors_[tensor];
  const std::int64_t rows = plan.dims.rows();
  const std::size_t row = row_bytes(plan.type, plan.dims.cols());
  const std::int64_t per_piece =
      std::max<std::int64_t>(
          1, tensor_pipeline::piece_bytes / static_cast<std::int64_t>(std::max<std::size_t>(1, row_cost)) / per_chunk) *
      per_chunk;
  for (std::int64_t first = 0; first < rows; first += per_piece) {
    const std::int64_t n = std::min(per_piece, rows - first);
    piece next{tensor, std::move(spare_), first + n == rows};
    resize_piece(next.bytes, static_cast<std::size_t>(n) * row);
    const auto chunk = [&](std::size_t index, piece& p, unsigned worker) {
      const std::int64_t begin = static_cast<std::int64_t>(index) * per_chunk, count = std::min(per_chunk, n - begin);
      return make(
          first + begin, count, worker,
          std::span(p.bytes).subspan(static_cast<std::size_t>(begin) * row, static_cast<std::size_t>(count) * row));
    };
    FLYWHEEL_CHECK(step(std::move(next), static_cast<std::size_t>((n + per_chunk - 1) / per_chunk), chunk));
  }
  return {};
}

result<void> tensor_pipeline::encode(std::size_t tensor, encode_fn encode) {
  const io::tensor_info& info = from_.tensors()[tensor];
  FLYWHEEL_TRY(const row_reader reader, row_reader::create(from_, info, ctx_));
  scratch_.resize(ctx_.executor().concurrency());
  FLYWHEEL_CHECK(
      make(tensor, reader.rows_at_once(), row_bytes(info.type, info.dims.cols()),
           [&](std::int64_t first, std::int64_t count, unsigned worker, std::span<std::byte> stored) -> result<void> {
             FLYWHEEL_TRY(const std::span<const float> values, reader.read(first, count, scratch_[worker]));
             return encode(values, first, stored);
           }));
  from_.release(info);
  return {};
}

result<void> tensor_pipeline::put(std::size_t tensor, std::vector<std::byte> bytes) {
  return step(piece{tensor, std::move(bytes), true}, 0,
              [](std::size_t, piece&, unsigned) -> result<void> { return {}; });
}

result<std::filesystem::path> tensor_pipeline::partial() {
  FLYWHEEL_CHECK(write_pending());
  return writer_->partial();
}

result<void> tensor_pipeline::amend(std::span<const std::pair<std::string, std::string>> texts) {
  FLYWHEEL_CHECK(write_pending());
  return writer_->amend(texts);
}

result<void> tensor_pipeline::finish() {
  FLYWHEEL_CHECK(write_pending());
  return writer_->finish();
}

}  // namespace flywheel::inline v0::detail
