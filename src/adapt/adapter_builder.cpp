#include "src/adapt/adapter_builder.hpp"

#include <cmath>
#include <utility>

#include "flywheel/detail/try.hpp"
#include "flywheel/formats/formats.hpp"
#include "src/io/byte_source.hpp"
#include "src/model/adapter_tensors.hpp"

namespace flywheel::inline v0::adapt {

std::uint64_t seed_of(std::uint64_t seed, std::string_view name) noexcept {
  std::uint64_t hash = 0xcbf29ce484222325ULL ^ seed;  // FNV-1a
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  return hash;
}

adapter_builder::adapter_builder(const io::archive& base, std::string name, dtype type) : type_(type) {
  io::metadata& meta = content_.metadata;
  meta.set("general.type", std::string("adapter"));
  if (const auto architecture = base.metadata().string("general.architecture"))
    meta.set("general.architecture", std::string(*architecture));
  meta.set("general.name", std::move(name));
  meta.set("adapter.type", std::string("lora"));
}

result<void> adapter_builder::put(std::string name, const shape& dims, std::span<const float> values) {
  const auto count = static_cast<std::int64_t>(values.size());
  FLYWHEEL_TRY(buffer bytes, buffer::allocate(row_bytes(type_, count)));
  formats::find_encoder(type_)(values.data(), count, bytes.mutable_data());
  content_.tensors.push_back(
      {std::move(name), type_, dims, 0, row_bytes(type_, count), static_cast<std::uint32_t>(content_.sources.size())});
  content_.file_bytes += row_bytes(type_, count);
  content_.sources.push_back(io::detail::make_source(std::move(bytes)));
  return {};
}

result<void> adapter_builder::add(const std::string& name, const shape& dims, bool embedding, std::int64_t rank,
                                  std::span<const float> left, std::span<const float> right) {
  rank_ = rank_ == 0 || rank_ == rank ? rank : -1;
  const auto named = [&](std::string_view part) { return name + std::string(part); };
  const std::int64_t n = dims[dims.rank() - 2], k = dims.cols();
  if (embedding) {
    std::vector<float> turned(right.size());
    for (std::int64_t j = 0; j < rank; ++j)
      for (std::int64_t c = 0; c < k; ++c)
        turned[static_cast<std::size_t>(c * rank + j)] = right[static_cast<std::size_t>(j * k + c)];
    FLYWHEEL_CHECK(put(named(detail::lora_a), {n, rank}, left));
    return put(named(detail::lora_b), {k, rank}, turned);
  }
  const bool experts = dims.rank() == 3;
  FLYWHEEL_CHECK(put(named(detail::lora_a), experts ? shape{dims[0], rank, k} : shape{rank, k}, right));
  return put(named(detail::lora_b), experts ? shape{dims[0], n, rank} : shape{n, rank}, left);
}

void adapter_builder::report(std::string name, std::int64_t rank, double squares, double error_squares) {
  made_.tensors.push_back(
      {std::move(name), rank, std::sqrt(squares), squares > 0 ? std::sqrt(error_squares / squares) : 0});
  squares_ += squares;
  error_squares_ += error_squares;
}

result<extracted_adapter> adapter_builder::finish() {
  content_.metadata.set("adapter.lora.alpha", rank_ > 0 ? static_cast<float>(rank_) : 0.0F);
  FLYWHEEL_TRY(made_.adapter, io::archive::assemble(std::move(content_)));
  made_.error = squares_ > 0 ? std::sqrt(error_squares_ / squares_) : 0;
  return std::move(made_);
}

}  // namespace flywheel::inline v0::adapt
