// The engine of merges: the same numbers as methods on whole tensors, whatever the threads; and what goes wrong.
#include "flywheel/adapt/merge_models.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <stop_token>

#include "flywheel/formats/formats.hpp"
#include "flywheel/io/writer.hpp"
#include "support/catch.hpp"
#include "support/failing_new.hpp"
#include "support/temp_folder.hpp"

namespace {

using namespace flywheel;
using namespace flywheel::test;
namespace merge = flywheel::adapt::merge;
using adapt::merge_plan;
using adapt::merge_step;

constexpr std::int64_t tall = 700, wide = 512;  ///< Several slices, the last one short.

/// Two tensors, "matrix" of the type and "vector" of f32. One element may be something else.
void write_parent(const std::filesystem::path& path, std::uint64_t seed, dtype type, std::int64_t rows = tall,
                  std::size_t odd_at = 0, float odd = 0) {
  const io::tensor_plan plans[] = {{"matrix", type, {rows, wide}, 0}, {"vector", dtype::f32, {wide}, 0}};
  const io::container kind = path.extension() == ".safetensors" ? io::container::safetensors : io::container::gguf;
  io::metadata meta;
  meta.set("general.architecture", "test");
  io::writer to = io::writer::create(path, kind, meta, plans).value();
  for (const io::tensor_plan& plan : plans) {
    std::vector<float> row(static_cast<std::size_t>(wide));
    std::vector<std::byte> stored(row_bytes(plan.type, wide));
    for (std::int64_t r = 0; r < plan.dims.rows(); ++r) {
      for (std::size_t i = 0; i < row.size(); ++i) {
        const std::size_t element = static_cast<std::size_t>(r * wide) + i;
        row[i] = static_cast<float>(merge::uniform(3, 0, element) + 0.1 * merge::uniform(3, seed, element) - 0.5);
        if (odd != 0 && element == odd_at && plan.name == "matrix") row[i] = odd;
      }
      formats::find_encoder(plan.type)(row.data(), wide, stored.data());
      to.write(stored).value();
    }
  }
  to.finish().value();
}

struct family {
  temp_folder folder;
  std::vector<std::filesystem::path> paths;

  explicit family(dtype type = dtype::f16) {
    for (std::uint64_t i = 0; i < 4; ++i) {
      paths.push_back(folder / (std::string("parent") + static_cast<char>('0' + i) + ".gguf"));
      write_parent(paths.back(), i + 1, type);
    }
  }
  /// The last of the parents is the base.
  [[nodiscard]] merge_plan plan(std::string_view method, dtype type = dtype::f32, std::size_t models = 3) const {
    merge_plan made;
    made.seed = 5;
    for (const auto& path : paths) made.models.push_back(io::archive::open(path).value());
    const merge::method* how = adapt::find_merge_method(method);
    models = std::min(models, how->max_models);
    for (const io::tensor_info& tensor : made.models.back().tensors()) {
      merge_step step;
      step.name = tensor.name;
      step.dims = tensor.dims;
      step.type = tensor.dims.rank() == 1 ? dtype::f32 : type;
      step.how = how;
      for (std::size_t m = 0; m < models; ++m) step.inputs.push_back({m, tensor.name});
      if (how->base == merge::base_use::required) step.base = {3, tensor.name};
      for (const merge::parameter_info& p : how->parameters)
        for (std::size_t m = 0; m < (p.per_model ? models : 1); ++m)
          step.parameters.push_back(p.name == "density" || p.name == "select_topk" || p.name == "t" ? 0.4
                                    : p.required                                                    ? 1
                                                                                                    : p.fallback);
      made.steps.push_back(std::move(step));
    }
    return made;
  }
  /// Nothing but the parents.
  [[nodiscard]] bool clean() const {
    std::size_t n = 0;
    for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder.path())) ++n;
    return n == paths.size();
  }
};

adapt::merge_options with_threads(unsigned threads) {
  context_options options;
  options.threads = threads;
  adapt::merge_options made;
  made.context = context::create(std::move(options)).value();
  return made;
}

std::vector<std::byte> bytes_of(const io::archive& from, const std::string& name) {
  const io::tensor_info& tensor = *from.find(name);
  std::vector<std::byte> bytes(static_cast<std::size_t>(tensor.bytes));
  from.read(tensor, 0, bytes).value();
  return bytes;
}

std::vector<float> values_of(const io::archive& from, const std::string& name) {
  const io::tensor_info& tensor = *from.find(name);
  std::vector<float> values(static_cast<std::size_t>(tensor.dims.elements()));
  formats::decode(from.view(tensor).value(), values).value();
  return values;
}

/// The same by merge_tensor.
std::vector<float> merged_whole(const merge_plan& plan, const merge_step& step) {
  std::vector<std::vector<float>> inputs;
  for (const auto& input : step.inputs) inputs.push_back(values_of(plan.models[input.model], input.tensor));
  if (step.base) inputs.push_back(values_of(plan.models[step.base->model], step.base->tensor));
  std::vector<const float*> models;
  for (std::size_t m = 0; m < step.inputs.size(); ++m) models.push_back(inputs[m].data());
  merge::task what;
  what.name = step.name;
  what.elements = step.dims.elements();
  what.cols = step.dims.cols();
  what.models = step.inputs.size();
  what.base = step.base.has_value();
  what.seed = merge::tensor_seed(plan.seed, step.name);
  what.parameters = step.parameters;
  std::vector<float> out(static_cast<std::size_t>(what.elements));
  merge_tensor(*step.how, what, models, what.base ? inputs.back().data() : nullptr, out);
  return out;
}

TEST_CASE("Slices and threads do not show", "[adapt][merge][engine]") {
  const family parents;
  for (const merge::method* how : adapt::merge_methods()) {
    CAPTURE(how->name);
    const std::size_t models = how->name == "nuslerp" ? 2 : 3;
    const merge_plan plan = parents.plan(how->name, dtype::f32, models);
    const std::filesystem::path out = parents.folder / "out.gguf";
    for (const unsigned threads : {1U, 2U, 4U}) {
      const adapt::merge_report report = merge_models(plan, out, with_threads(threads)).value();
      CHECK(report.tensors == 2);
      CHECK(report.bytes == (tall + 1) * wide * 4);
      const io::archive merged = io::archive::open(out).value();
      for (const merge_step& step : plan.steps) CHECK((values_of(merged, step.name) == merged_whole(plan, step)));
    }
    const io::archive in_memory = merge_in_memory(plan, with_threads(2)).value();
    for (const merge_step& step : plan.steps) CHECK((values_of(in_memory, step.name) == merged_whole(plan, step)));
    std::filesystem::remove(out);
  }
}

TEST_CASE("Seeds choose, and nothing else does", "[adapt][merge][engine]") {
  const family parents;
  merge_plan plan = parents.plan("dare_ties");
  const auto first = bytes_of(merge_in_memory(plan).value(), "matrix");
  CHECK(first == bytes_of(merge_in_memory(plan).value(), "matrix"));
  plan.seed = 6;
  CHECK(first != bytes_of(merge_in_memory(plan).value(), "matrix"));
}

TEST_CASE("Merged weights take any type, from any type", "[adapt][merge][engine]") {
  for (const dtype from : {dtype::f16, dtype::bf16, dtype::q8_0}) {
    const family parents(from);
    for (const dtype to : {dtype::f16, dtype::bf16}) {
      CAPTURE(to_string(from), to_string(to));
      const merge_plan plan = parents.plan("task_arithmetic", to);
      const std::vector<float> exact = merged_whole(plan, plan.steps.front());
      std::vector<std::byte> expected(static_cast<std::size_t>(tall) * row_bytes(to, wide));
      formats::find_encoder(to)(exact.data(), tall * wide, expected.data());
      CHECK(bytes_of(merge_in_memory(plan).value(), "matrix") == expected);
    }
  }
  const family parents;
  const merge_plan plan = parents.plan("linear", dtype::q4_k);
  const std::vector<float> exact = merged_whole(plan, plan.steps.front());
  const std::vector<float> rounded = values_of(merge_in_memory(plan).value(), "matrix");
  double error = 0, power = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    error += std::pow(static_cast<double>(exact[i] - rounded[i]), 2);
    power += std::pow(static_cast<double>(exact[i]), 2);
  }
  CHECK(std::sqrt(error / power) < 0.1);

  // A container of another kind.
  const std::filesystem::path out = parents.folder / "out.safetensors";
  merge_models(parents.plan("linear", dtype::f16), out).value();
  CHECK(io::archive::open(out).value().container() == io::container::safetensors);
}

/// Bytes that are computed on reading, and kept until they are released.
class counting_source final : public io::byte_source {
 public:
  explicit counting_source(std::vector<std::byte> bytes) : bytes_(std::move(bytes)) {}
  [[nodiscard]] std::uint64_t size() const noexcept override { return bytes_.size(); }
  [[nodiscard]] result<void> read(std::uint64_t offset, std::span<std::byte> out) const override {
    std::copy_n(bytes_.begin() + static_cast<std::ptrdiff_t>(offset), out.size(), out.begin());
    return {};
  }
  void release(std::uint64_t, std::uint64_t) const noexcept override { ++released; }
  mutable std::atomic<int> released{0};

 private:
  std::vector<std::byte> bytes_;
};

TEST_CASE("Computed inputs are kept until their tensor is done", "[adapt][merge][engine]") {
  const family parents;
  merge_plan plan = parents.plan("ties");
  plan.steps.resize(1);
  const io::archive exact = merge_in_memory(plan).value();
  const auto source = std::make_shared<counting_source>(bytes_of(plan.models[1], "matrix"));
  io::archive_content content;
  content.tensors = {*plan.models[1].find("matrix")};
  content.tensors[0].offset = 0;
  content.tensors[0].part = 0;
  content.sources = {source};
  plan.models[1] = io::archive::assemble(std::move(content)).value();
  CHECK(bytes_of(merge_in_memory(plan).value(), "matrix") == bytes_of(exact, "matrix"));
  CHECK(source->released == 1);
}

TEST_CASE("What no method changes is copied", "[adapt][merge][engine]") {
  const family parents;
  merge_plan plan = parents.plan("passthrough", dtype::f16);
  plan.steps[1].how = nullptr;
  plan.steps[1].parameters.clear();
  const std::filesystem::path out = parents.folder / "out.gguf";
  CHECK(merge_models(plan, out).value().copied == 2);
  for (const char* name : {"matrix", "vector"}) {
    CHECK(bytes_of(io::archive::open(out).value(), name) == bytes_of(plan.models[0], name));
    CHECK(bytes_of(merge_in_memory(plan).value(), name) == bytes_of(plan.models[0], name));
  }
  plan.steps[0].parameters = {-2};
  CHECK(merge_models(plan, out).value().copied == 1);
  CHECK(values_of(io::archive::open(out).value(), "matrix")[5] == -2 * values_of(plan.models[0], "matrix")[5]);
  plan.steps[0].type = dtype::f32;  // a copy into another type
  plan.steps[0].how = nullptr;
  CHECK(values_of(merge_in_memory(plan).value(), "matrix") == values_of(plan.models[0], "matrix"));
}

TEST_CASE("Plans that cannot be carried out leave nothing behind", "[adapt][merge][engine]") {
  const family parents;
  const std::filesystem::path out = parents.folder / "out.gguf";
  const auto fails = [&](const merge_plan& plan, errc code, const std::vector<std::string>& words) {
    for (const bool in_memory : {false, true}) {
      result<void> done;
      if (in_memory) {
        if (auto r = merge_in_memory(plan); !r) done = r.error();
      } else {
        if (auto r = merge_models(plan, out); !r) done = r.error();
      }
      CAPTURE(words.front(), in_memory);
      REQUIRE_FALSE(done);
      CHECK(done.error().code == code);
      const std::string text = done.error().where + ": " + done.error().message;
      for (const std::string& word : words) {
        CAPTURE(word, text);
        CHECK(text.find(word) != std::string::npos);
      }
    }
    CHECK(parents.clean());
  };
  const auto changed = [&](auto change, std::string_view method = "ties") {
    merge_plan plan = parents.plan(method, dtype::f16);
    change(plan.steps[0]);
    return plan;
  };
  fails(changed([](merge_step& s) { s.inputs[1].tensor = "no"; }), errc::not_found, {"'no'", "parent1.gguf"});
  fails(changed([](merge_step& s) { s.inputs[1].tensor = "vector"; }), errc::invalid_argument,
        {"'vector'", "parent1.gguf", "[700, 512]", "[512]"});
  fails(changed([](merge_step& s) { s.inputs[1].model = 9; }), errc::invalid_argument, {"'matrix'"});
  fails(changed([](merge_step& s) { s.inputs.clear(); }), errc::invalid_argument, {"'matrix'"});
  fails(changed([](merge_step& s) { s.base.reset(); }), errc::invalid_argument, {"'matrix'", "base"});
  fails(changed([](merge_step& s) { s.base = {3, "matrix"}; }, "linear"), errc::invalid_argument, {"base"});
  fails(changed([](merge_step& s) { s.parameters.pop_back(); }), errc::invalid_argument, {"parameters"});
  fails(changed([](merge_step& s) { s.parameters[3] = 1.5; }), errc::invalid_argument, {"density", "1.5"});
  fails(changed([](merge_step& s) { s.parameters[3] = std::nan(""); }), errc::invalid_argument, {"density"});
  fails(changed(
            [](merge_step& s) {
              s.parameters = {1, -1, 0, 1};
            },
            "linear"),
        errc::invalid_argument, {"add up to 0"});
  fails(changed([](merge_step& s) { s.type = dtype::i32; }), errc::unsupported, {"'matrix'"});
  fails(changed(
            [](merge_step& s) {
              s.parameters = {1e6, 1e6, 1e6, 0};
            },
            "linear"),
        errc::invalid_argument, {"'matrix'", "cannot hold", "element"});
  merge_plan none = parents.plan("ties");
  none.steps.clear();
  fails(none, errc::invalid_argument, {"no tensors"});

  for (const float odd : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()})
    for (const char* method : {"linear", "ties", "slerp"}) {
      write_parent(parents.paths[0], 1, dtype::f16, tall, 300000, odd);
      fails(parents.plan(method, dtype::f16), errc::invalid_argument,
            {"parent0.gguf", "'matrix'", "300000", std::isnan(odd) ? "not a number" : "infinite"});
      write_parent(parents.paths[0], 1, dtype::f16);
    }
  for (const auto& path : parents.paths) {
    const auto over_itself = merge_models(parents.plan("linear"), path);
    REQUIRE_FALSE(over_itself);
    CHECK(over_itself.error().code == errc::invalid_argument);
  }
  CHECK_FALSE(merge_models(parents.plan("linear"), parents.folder / "no/out.gguf"));
  CHECK(parents.clean());
}

TEST_CASE("A merge reports bytes and stops when it is told to", "[adapt][merge][engine]") {
  const family parents;
  const merge_plan plan = parents.plan("ties", dtype::f16);
  const std::filesystem::path out = parents.folder / "out.gguf";
  const std::uint64_t size = tall * wide * 2 + wide * 4;
  std::uint64_t last = 0;
  adapt::merge_options options = with_threads(2);
  options.control.progress = [&](std::uint64_t done, std::uint64_t total, std::string_view what) {
    CHECK(done >= last);
    CHECK(total == size);
    CHECK_FALSE(what.empty());
    last = done;
  };
  const adapt::merge_report report = merge_models(plan, out, options).value();
  CHECK(last == size);
  CHECK(report.bytes == size);
  CHECK(report.bytes_read > 0);
  std::filesystem::remove(out);

  std::stop_source stop;
  options.control.stop = stop.get_token();
  options.control.progress = [&](std::uint64_t, std::uint64_t, std::string_view) { stop.request_stop(); };
  const auto stopped = merge_models(plan, out, options);
  REQUIRE_FALSE(stopped);
  CHECK(stopped.error().code == errc::cancelled);
  CHECK(merge_in_memory(plan, options).error().code == errc::cancelled);
  CHECK(parents.clean());
}

TEST_CASE("Every pass over the inputs is counted", "[adapt][merge][engine]") {
  const family parents;
  const std::filesystem::path out = parents.folder / "out.gguf";
  const std::uint64_t input = tall * wide * 2 + wide * 4;
  const auto read_by = [&](const char* method) {
    return merge_models(parents.plan(method, dtype::f32, 2), out).value().bytes_read;
  };
  CHECK(read_by("linear") == 2 * input);
  CHECK(read_by("slerp") == 2 * 2 * input);
  CHECK(read_by("arcee_fusion") == 3 * 2 * input);
  CHECK(read_by("dare_linear") == 2 * 3 * input);
  merge_plan copies = parents.plan("passthrough", dtype::f16);
  for (merge_step& step : copies.steps) step.how = nullptr, step.parameters.clear();
  CHECK(merge_models(copies, out).value().bytes_read == input);
}

TEST_CASE("Progress is told during passes, and not too often", "[adapt][merge][engine]") {
  const family parents;
  const merge_plan plan = parents.plan("ties", dtype::f16);
  std::size_t calls = 0, early = 0;
  adapt::merge_options options = with_threads(1);
  options.control.progress = [&](std::uint64_t done, std::uint64_t, std::string_view) {
    ++calls;
    early += done == 0 ? 1 : 0;
  };
  const auto begin = std::chrono::steady_clock::now();
  merge_models(plan, parents.folder / "out.gguf", options).value();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  CHECK(early > 0);
  CHECK(static_cast<double>(calls) <= took.count() * 20 + 2);
}

TEST_CASE("Merging takes no more memory than was said", "[adapt][merge][engine]") {
  const auto check = [](const merge_plan& plan, const std::filesystem::path& out, unsigned threads, bool full) {
    const adapt::merge_options options = with_threads(threads);
    const std::uint64_t stated = plan.peak_memory(threads);
    const peak_of_allocations peak;
    merge_models(plan, out, options).value();
    CAPTURE(plan.steps[0].how->name, threads, stated);
    CHECK(peak.bytes() <= stated);
    if (full) CHECK(2 * peak.bytes() >= stated);
    std::filesystem::remove(out);
  };
  const family parents;
  for (const merge::method* how : adapt::merge_methods())
    check(parents.plan(how->name, dtype::f16, how->name == "nuslerp" ? 2 : 3), parents.folder / "out.gguf", 2, false);
  for (const dtype type : {dtype::bf16, dtype::q8_0, dtype::q4_k, dtype::iq4_xs})
    check(parents.plan("linear", type), parents.folder / "out.gguf", 3, false);
  merge_plan columns = parents.plan("nuslerp", dtype::f32, 2);
  for (merge_step& step : columns.steps) step.parameters = {1, 1, 0, 1};
  check(columns, parents.folder / "out.gguf", 2, false);

  // Pieces as large as they get.
  family large;
  for (std::size_t i = 0; i < large.paths.size(); ++i) write_parent(large.paths[i], i, dtype::f16, 9000);
  for (const char* method : {"linear", "ties"})
    check(large.plan(method, dtype::f32, 1), large.folder / "out.gguf", 2, true);

  // What does not fit has some number.
  merge_plan odd = parents.plan("ties");
  odd.steps[0].parameters.resize(1);
  odd.steps[1].inputs[0] = {9, "no"};
  CHECK(odd.peak_memory(2) > 0);
}

/// Fails from some byte on.
class broken_source final : public io::byte_source {
 public:
  explicit broken_source(std::uint64_t size) : size_(size) {}
  [[nodiscard]] std::uint64_t size() const noexcept override { return size_; }
  [[nodiscard]] result<void> read(std::uint64_t offset, std::span<std::byte> out) const override {
    if (offset + out.size() > size_ / 2) return error{errc::io, "the disk is gone", "parent1"};
    std::fill(out.begin(), out.end(), std::byte{});
    return {};
  }

 private:
  std::uint64_t size_;
};

TEST_CASE("An input that cannot be read ends a merge", "[adapt][merge][engine]") {
  const family parents;
  for (const char* method : {"linear", "ties"}) {
    merge_plan plan = parents.plan(method);
    plan.steps.resize(1);
    io::archive_content content;
    content.tensors = {*plan.models[1].find("matrix")};
    content.tensors[0].offset = 0;
    content.tensors[0].part = 0;
    content.sources = {std::make_shared<broken_source>(content.tensors[0].bytes)};
    plan.models[1] = io::archive::assemble(std::move(content)).value();
    for (const auto& done : {merge_models(plan, parents.folder / "out.gguf").error(), merge_in_memory(plan).error()}) {
      CHECK(done.code == errc::io);
      CHECK(done.message.find("the disk is gone") != std::string::npos);
    }
    CHECK(parents.clean());
  }
}

TEST_CASE("What bf16 would round to infinity is refused", "[adapt][merge][engine]") {
  const family parents(dtype::f32);
  merge_plan plan = parents.plan("linear", dtype::bf16, 1);
  plan.steps.resize(1);
  write_parent(parents.paths[0], 1, dtype::f32, tall, 7, 3.4e38F);
  plan.models[0] = io::archive::open(parents.paths[0]).value();
  const auto merged = merge_in_memory(plan);
  REQUIRE_FALSE(merged);
  CHECK(merged.error().message.find("element 7 ") != std::string::npos);
}

}  // namespace
