// Archives that a program puts together itself: every tensor must lie in its source and have the bytes of its shape.
#include <span>
#include <vector>

#include "flywheel/io/archive.hpp"
#include "flywheel/io/writer.hpp"
#include "support/catch.hpp"
#include "support/temp_folder.hpp"

namespace fw = flywheel;
namespace io = flywheel::io;
using fw::errc;

TEST_CASE("assemble takes tensors whose shape, type and bytes agree") {
  const fw::test::temp_folder folder;
  const std::vector<float> values(6, 1.5F);
  const std::vector<io::tensor_plan> plans = {{"a", fw::dtype::f32, {2, 3}, 0}};
  io::writer out =
      std::move(io::writer::create(folder / "a.safetensors", io::container::safetensors, {}, plans)).value();
  out.write(std::as_bytes(std::span(values))).value();
  out.finish().value();
  const io::archive file = io::archive::open(folder / "a.safetensors").value();
  const auto with = [&](auto&& change) {
    io::archive_content content;
    content.sources.assign(file.sources().begin(), file.sources().end());
    content.tensors.assign(file.tensors().begin(), file.tensors().end());
    change(content.tensors.front());
    return io::archive::assemble(std::move(content));
  };
  CHECK(with([](io::tensor_info& t) { t.dims = {3, 2}; }));
  for (const auto& wrong : {with([](io::tensor_info& t) {
                              t.dims = {3, 3};
                            }),
                            with([](io::tensor_info& t) { t.type = fw::dtype::f16; }),
                            with([](io::tensor_info& t) { t.bytes -= 4; }), with([](io::tensor_info& t) {
                              t.dims = {std::int64_t{1} << 62, 1 << 20};
                            }),
                            with([](io::tensor_info& t) { t.offset = UINT64_MAX; })}) {
    REQUIRE(!wrong);
    CHECK(wrong.error().code == errc::malformed);
    CHECK(wrong.error().where.find("'a'") != std::string::npos);
  }
}
