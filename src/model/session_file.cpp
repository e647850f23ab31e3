// Files of session state. Little-endian:
//
//   char magic[8]        "FLYWKV\r\n": a transfer that changes line ends breaks it
//   u32 version          3
//   u32 flags            bit 0: logits are present; bit 1: keys are rotated for long contexts (kv_layout);
//                        bit 2: some positions were computed with other adapters than the last ones
//   u64 model            engine::digest()
//   u64 layout           kv_layout::digest()
//   u32 kv_type          a dtype
//   u32 n_vocab
//   u32 page_tokens      kv_page_tokens: it is part of the layout of the rows
//   u32 adapters         adapter_set::digest(); 0: none
//   u64 n_tokens         all tokens
//   u64 n_cached         the first of them, which have been computed
//   i32 tokens[n_tokens]
//   f32 logits[n_vocab]  when present: after the last token
//   keys and values      of the cached positions that are still seen, and recurrent states: see kv_cache::visit
//   u64 checksum         XXH64 of everything before
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <string>
#include <type_traits>

#include "flywheel/core/buffer.hpp"
#include "flywheel/detail/try.hpp"
#include "src/core/checksum.hpp"
#include "src/io/output_file.hpp"
#include "src/model/session_state.hpp"

namespace flywheel::inline v0 {
namespace {

constexpr std::array<char, 8> magic = {'F', 'L', 'Y', 'W', 'K', 'V', '\r', '\n'};
constexpr std::uint32_t version = 3;
constexpr std::uint32_t has_logits_flag = 1, long_rotation_flag = 2, foreign_flag = 4;
constexpr std::size_t header_bytes = 64;
constexpr std::size_t checksum_bytes = 8;

// Numbers are written as they lie in memory.
constexpr bool little_endian = std::endian::native == std::endian::little;
error big_endian() { return {errc::unsupported, "session files are not supported on big-endian machines", "session"}; }

error malformed(std::string message) { return {errc::malformed, std::move(message), "session file"}; }
error mismatch(std::string message) { return {errc::invalid_argument, std::move(message), "session file"}; }

struct header {
  std::uint32_t version = 0, flags = 0;
  std::uint64_t model = 0, layout = 0;
  std::uint32_t kv_type = 0, n_vocab = 0, page_tokens = 0, adapters = 0;
  std::uint64_t n_tokens = 0, n_cached = 0;

  /// Calls f for each number in the order of the file.
  template <class Self, class F>
  static void each(Self& h, F&& f) {
    f(h.version), f(h.flags), f(h.model), f(h.layout), f(h.kv_type), f(h.n_vocab), f(h.page_tokens), f(h.adapters);
    f(h.n_tokens), f(h.n_cached);
  }
};

header header_of(const session::state& s) {
  header h;
  h.version = version;
  h.flags = (s.has_logits ? has_logits_flag : 0) |
            (s.cache.layout().rotates_long(s.options.n_ctx) ? long_rotation_flag : 0) |
            (std::min(s.foreign, s.cache.size()) > 0 ? foreign_flag : 0);
  h.model = s.engine().digest();
  h.layout = s.cache.layout().digest();
  h.kv_type = static_cast<std::uint32_t>(s.cache.kv_type());
  h.n_vocab = static_cast<std::uint32_t>(s.n_vocab());
  h.adapters = s.adapters.digest();
  h.page_tokens = static_cast<std::uint32_t>(kv_page_tokens);
  h.n_tokens = s.tokens.size();
  h.n_cached = static_cast<std::uint64_t>(s.cache.size());
  return h;
}

template <class T>
std::span<const std::byte> bytes_of(const T* data, std::size_t count) noexcept {
  return std::as_bytes(std::span(data, count));
}

std::size_t file_bytes(const session::state& s) {
  return header_bytes + s.tokens.size() * sizeof(token_id) + (s.has_logits ? s.logits.size() : 0) +
         s.cache.stored_bytes(s.cache.size()) + checksum_bytes;
}

/// Gives the file piece by piece.
result<void> write_state(const session::state& s, function_ref<result<void>(std::span<const std::byte>)> sink) {
  if (!little_endian) return big_endian();
  detail::checksum sum;
  const auto put = [&](std::span<const std::byte> bytes) -> result<void> {
    sum.add(bytes);
    return sink(bytes);
  };
  std::array<std::byte, header_bytes> head{};
  std::memcpy(head.data(), magic.data(), magic.size());
  std::size_t at = magic.size();
  const header h = header_of(s);
  header::each(h, [&](const auto& number) {
    std::memcpy(head.data() + at, &number, sizeof number);
    at += sizeof number;
  });
  FLYWHEEL_CHECK(put(head));
  FLYWHEEL_CHECK(put(bytes_of(s.tokens.data(), s.tokens.size())));
  if (s.has_logits) FLYWHEEL_CHECK(put(s.logits.bytes()));
  FLYWHEEL_CHECK(s.cache.visit(put));
  const std::uint64_t value = sum.value();
  return sink(bytes_of(&value, 1));
}

/// Checks the header against the session and the length of the file.
result<header> read_header(const session::state& s, std::span<const std::byte> file) {
  if (file.size() < header_bytes + checksum_bytes || std::memcmp(file.data(), magic.data(), magic.size()) != 0)
    return malformed("this is not a file of session state");
  header h;
  std::size_t at = magic.size();
  header::each(h, [&](auto& number) {
    std::memcpy(&number, file.data() + at, sizeof number);
    at += sizeof number;
  });
  if (h.version != version)
    return error{errc::unsupported,
                 "version " + std::to_string(h.version) + " is not known, only " + std::to_string(version) +
                     "; prefill the text again instead",
                 "session file"};
  if ((h.flags & ~(has_logits_flag | long_rotation_flag | foreign_flag)) != 0) return malformed("unknown flags");
  const header own = header_of(s);
  if (h.model != own.model || h.layout != own.layout || h.n_vocab != own.n_vocab)
    return mismatch("the state belongs to another model");
  if (h.kv_type != own.kv_type)
    return mismatch("the state is " + std::string(to_string(static_cast<dtype>(h.kv_type))) +
                    ", this session's cache " + std::string(to_string(s.cache.kv_type())) +
                    "; create the session with that kv_type");
  if (h.adapters != own.adapters)
    return mismatch(h.adapters == 0 ? "the state was computed without adapters; take those of this session away first"
                                    : "the state was computed with other adapters or scales; set the same ones first");
  if (((h.flags ^ own.flags) & long_rotation_flag) != 0)
    return mismatch("this model rotates keys otherwise when n_ctx exceeds " +
                    std::to_string(s.cache.layout().long_rotation_beyond) +
                    ", and the state's n_ctx was on the other side; " +
                    "create the session with a like n_ctx, or prefill the text again");
  if (h.page_tokens != own.page_tokens) return mismatch("the state has pages of another size");
  if (h.n_tokens > static_cast<std::uint64_t>(s.options.n_ctx))
    return mismatch("the state holds " + std::to_string(h.n_tokens) + " tokens, this session only " +
                    std::to_string(s.options.n_ctx) + "; create it with a larger n_ctx");
  if (h.n_cached > h.n_tokens) return malformed("more positions are cached than there are tokens");
  if ((h.n_tokens == 0 || h.n_cached < h.n_tokens) && (h.flags & has_logits_flag) != 0)
    return malformed("logits of tokens that are not computed");
  // Not more than n_ctx tokens, whose size the session has checked when it was made: nothing overflows.
  const std::size_t expected = header_bytes + h.n_tokens * sizeof(token_id) +
                               ((h.flags & has_logits_flag) != 0 ? s.logits.size() : 0) +
                               s.cache.stored_bytes(static_cast<std::int64_t>(h.n_cached)) + checksum_bytes;
  if (file.size() != expected)
    return malformed("the file is " + std::to_string(file.size()) + " bytes long, but should be " +
                     std::to_string(expected) + "; it is incomplete or damaged");
  return h;
}

}  // namespace

result<void> session::save(const std::filesystem::path& path) const {
  return detail::guarded([&]() -> result<void> {
    FLYWHEEL_TRY(auto file, io::detail::output_file::create(path));
    FLYWHEEL_CHECK(write_state(*state_, [&](std::span<const std::byte> bytes) { return file.write(bytes); }));
    return file.commit();
  });
}

result<std::vector<std::byte>> session::save() const {
  return detail::guarded([&]() -> result<std::vector<std::byte>> {
    std::vector<std::byte> out;
    out.reserve(file_bytes(*state_));
    FLYWHEEL_CHECK(write_state(*state_, [&](std::span<const std::byte> bytes) -> result<void> {
      out.insert(out.end(), bytes.begin(), bytes.end());
      return {};
    }));
    return out;
  });
}

result<void> session::restore(const std::filesystem::path& path) {
  return detail::guarded([&]() -> result<void> {
    FLYWHEEL_TRY(const auto file, mapped_file::open(path));
    result<void> done = restore(file->bytes());
    if (!done && done.error().code != errc::out_of_memory) done.error().where = path.string();
    return done;
  });
}

result<void> session::restore(std::span<const std::byte> bytes) {
  return detail::guarded([&]() -> result<void> {
    if (!little_endian) return big_endian();
    state& s = *state_;
    FLYWHEEL_TRY(const header h, read_header(s, bytes));
    // The header has bounded every size by the length of the file: nothing below allocates more than a page over that.
    std::span<const std::byte> left = bytes.subspan(header_bytes);
    const auto take = [&](std::size_t n) {
      const std::span<const std::byte> piece = left.first(n);
      left = left.subspan(n);
      return piece;
    };
    std::vector<token_id> tokens(h.n_tokens);
    if (!tokens.empty())
      std::memcpy(tokens.data(), take(tokens.size() * sizeof(token_id)).data(), tokens.size() * sizeof(token_id));
    for (const token_id id : tokens)
      if (id < 0 || static_cast<std::size_t>(id) >= s.n_vocab()) return malformed("a token is not in the vocabulary");
    const bool has_logits = (h.flags & has_logits_flag) != 0;
    std::span<const std::byte> logits;
    if (has_logits) logits = take(s.logits.size());

    detail::checksum sum;
    sum.add(bytes.first(bytes.size() - checksum_bytes));
    std::uint64_t stored = 0;
    std::memcpy(&stored, bytes.last(checksum_bytes).data(), checksum_bytes);
    if (stored != sum.value()) return malformed("the checksum does not match; the file is damaged");

    FLYWHEEL_TRY(auto cache, detail::kv_cache::create(s.cache.layout(), s.cache.kv_type(), s.model->ctx.memory()));
    FLYWHEEL_CHECK(
        cache.restore(static_cast<std::int64_t>(h.n_cached), [&](std::span<std::byte> piece) -> result<void> {
          std::memcpy(piece.data(), take(piece.size()).data(), piece.size());
          return {};
        }));
    // Nothing fails any more.
    if (has_logits) std::memcpy(s.logits.mutable_data(), logits.data(), logits.size());
    s.has_logits = has_logits;
    s.cache = std::move(cache);
    s.foreign = (h.flags & foreign_flag) != 0 ? s.cache.size() : 0;
    s.tokens.swap(tokens);
    return {};
  });
}

}  // namespace flywheel::inline v0
