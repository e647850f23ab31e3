// packed_size, pack and unpack.
#include <algorithm>
#include <cstring>
#include <limits>

#include "device_conformance/check.hpp"

namespace flywheel::kit {
namespace {

struct matrix_size {
  std::int64_t n, k;
};
constexpr matrix_size sizes[] = {{1, 1}, {1, 128}, {7, 33}, {16, 256}, {33, 129}, {31, 300}, {64, 512}, {130, 1000}};

/// Memory for pack between two guards, at the alignment that buffers have.
class guarded_bytes {
 public:
  guarded_bytes(std::size_t bytes, std::size_t alignment, unsigned char inside)
      : bytes_(bytes), memory_(bytes + 2 * guard + alignment, outside) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.data()) + guard;
    first_ = guard + (alignment - address % alignment) % alignment;
    std::fill_n(data(), bytes, inside);
  }
  [[nodiscard]] unsigned char* data() { return memory_.data() + first_; }
  /// Bytes that were written beyond the end, before the beginning.
  [[nodiscard]] std::int64_t beyond() { return changed(data() + bytes_, memory_.data() + memory_.size()); }
  [[nodiscard]] std::int64_t before() { return changed(memory_.data(), data()); }

 private:
  static std::int64_t changed(const unsigned char* first, const unsigned char* last) {
    return std::count_if(first, last, [](unsigned char c) { return c != outside; });
  }
  static constexpr std::size_t guard = 4096;
  static constexpr unsigned char outside = 0xA5;
  std::size_t bytes_, first_ = 0;
  std::vector<unsigned char> memory_;
};

/// Calls each(op, weights, packed size) for every format and size that the device takes.
template <class F>
void for_each_matrix(bench& b, std::uint64_t stream, F&& each) {
  std::mt19937_64 random = b.random(stream);
  int done = 0, refused = 0;
  for (const flywheel_weight_format& f : b.formats())
    for (const matrix_size& s : sizes) {
      const flywheel_matmul op = make_op(0, s.n, s.k, f);
      flywheel_support answer;
      if (b.device().query(op, answer) != FLYWHEEL_OK || answer.ok == 0) {
        ++refused;
        continue;
      }
      std::uint64_t bytes = 0;
      b.device().require(b.device().packed_size(op, bytes), "packed_size of a " + describe(op));
      expect(bytes > 0 && bytes < (std::uint64_t{1} << 30),
             "packed_size is " + std::to_string(bytes) + " for " + describe(op));
      each(op, fill(s.n, s.k, group_of(op), f.bits, done % 2 == 0 ? filling::random : filling::special, random), bytes);
      ++done;
    }
  b.note = std::to_string(done) + " matrices" + (refused > 0 ? ", " + std::to_string(refused) + " refused" : "");
  expect(done > 0, "query refuses every small matrix, such as n 64, k 512");
}

void check_packed_size(bench& b) {
  for_each_matrix(b, 10, [&](const flywheel_matmul& op, const quantized& w, std::uint64_t bytes) {
    probe& d = b.device();
    guarded_bytes one(bytes, d.caps().alignment, 0x11), two(bytes, d.caps().alignment, 0xEE);
    for (guarded_bytes* out : {&one, &two}) {
      d.require(d.pack(op, w.codes.data(), w.scales.data(), out->data()), "pack of a " + describe(op));
      expect(out->beyond() == 0, "pack wrote beyond packed_size: at least " + std::to_string(out->beyond()) +
                                     " bytes more than the " + std::to_string(bytes) + " that packed_size says, for " +
                                     describe(op));
      expect(out->before() == 0, "pack wrote " + std::to_string(out->before()) + " bytes before its memory");
    }
    const auto at = std::mismatch(one.data(), one.data() + bytes, two.data()).first - one.data();
    expect(static_cast<std::uint64_t>(at) == bytes, "pack wrote less than packed_size: byte " + std::to_string(at) +
                                                        " of " + std::to_string(bytes) +
                                                        " keeps what was there before, for " + describe(op));
  });
}

void check_unpack(bench& b) {
  for_each_matrix(b, 11, [&](const flywheel_matmul& op, const quantized& w, std::uint64_t bytes) {
    probe& d = b.device();
    guarded_bytes packed(bytes, d.caps().alignment, 0);
    const quantized before = w;
    d.require(d.pack(op, w.codes.data(), w.scales.data(), packed.data()), "pack");
    expect(before.codes == w.codes, "pack changed the codes that it was given");
    const std::vector<unsigned char> kept(packed.data(), packed.data() + bytes);
    guarded_bytes codes(w.codes.size(), 1, 0x33), scales(w.scales.size() * sizeof(float), alignof(float), 0x33);
    d.require(d.unpack(op, packed.data(), reinterpret_cast<std::int8_t*>(codes.data()),
                       reinterpret_cast<float*>(scales.data())),
              "unpack of a " + describe(op));
    expect(codes.beyond() == 0 && codes.before() == 0, "unpack wrote beyond the n * k codes, for " + describe(op));
    expect(scales.beyond() == 0 && scales.before() == 0,
           "unpack wrote beyond the n * groups scales, for " + describe(op));
    expect(std::equal(kept.begin(), kept.end(), packed.data()), "unpack changed the packed weights");
    for (std::size_t i = 0; i < w.codes.size(); ++i)
      expect(static_cast<std::int8_t>(codes.data()[i]) == w.codes[i],
             "unpack gave code " + std::to_string(static_cast<std::int8_t>(codes.data()[i])) + " instead of " +
                 std::to_string(w.codes[i]) + " in row " + std::to_string(i / static_cast<std::size_t>(op.k)) +
                 ", column " + std::to_string(i % static_cast<std::size_t>(op.k)) + " of " + describe(op));
    expect(std::memcmp(scales.data(), w.scales.data(), w.scales.size() * sizeof(float)) == 0,
           "unpack gave other scales than pack had, bit for bit, for " + describe(op));
  });
}

void check_packing_rows(bench& b) {
  for_each_matrix(b, 12, [&](const flywheel_matmul& op, const quantized&, std::uint64_t bytes) {
    for (const std::int64_t rows : {1, 128}) {
      flywheel_matmul other = op;
      other.rows = rows;
      other.input = 3;
      std::uint64_t size = 0;
      b.device().require(b.device().packed_size(other, size), "packed_size");
      expect(size == bytes, "packed_size depends on the number of rows or the input: " + std::to_string(bytes) +
                                " bytes for any number, " + std::to_string(size) + " for " + std::to_string(rows) +
                                "; one packing serves all");
    }
  });
}

constexpr check packing_list[] = {
    {"packing", "pack.size", "pack writes exactly packed_size bytes", true, check_packed_size},
    {"packing", "pack.unpack", "unpack gives back every code and scale", true, check_unpack},
    {"packing", "pack.rows", "one packing serves every number of rows", true, check_packing_rows},
};

}  // namespace

std::span<const check> packing_checks() { return packing_list; }

}  // namespace flywheel::kit
