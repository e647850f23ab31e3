#define PCRE2_CODE_UNIT_WIDTH 8
#include "regex.hpp"

#include <pcre2.h>

#include <algorithm>
#include <limits>
#include <new>
#include <string>
#include <utility>

namespace flywheel::inline v0::text {
namespace {

// PCRE2 takes its memory where the library takes its own.
void* allocate(std::size_t size, void*) { return ::operator new(size, std::nothrow); }
void release(void* p, void*) { ::operator delete(p); }

struct general_context {
  pcre2_general_context* value = pcre2_general_context_create(allocate, release, nullptr);
  general_context() {
    if (value == nullptr) throw std::bad_alloc();
  }
  ~general_context() { pcre2_general_context_free(value); }
  general_context(const general_context&) = delete;
  general_context& operator=(const general_context&) = delete;
};

std::string describe(int status) {
  PCRE2_UCHAR text[128] = {};
  pcre2_get_error_message(status, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

}  // namespace

struct regex::code {
  general_context context;
  pcre2_code* value = nullptr;
  bool compiled_to_machine_code = false;
  code() = default;
  code(const code&) = delete;
  code& operator=(const code&) = delete;
  ~code() { pcre2_code_free(value); }
};

result<regex> regex::compile(std::string_view pattern) {
  auto made = std::make_shared<code>();
  int status = 0;
  PCRE2_SIZE where = 0;
  const std::unique_ptr<pcre2_compile_context, void (*)(pcre2_compile_context*)> context(
      pcre2_compile_context_create(made->context.value), pcre2_compile_context_free);
  if (!context) throw std::bad_alloc();
  made->value = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), PCRE2_UTF | PCRE2_UCP,
                              &status, &where, context.get());
  if (made->value == nullptr) {
    if (status == PCRE2_ERROR_HEAP_FAILED) throw std::bad_alloc();
    return error{errc::internal, "expression: " + describe(status) + " at " + std::to_string(where),
                 std::string(pattern)};
  }
  // Refused where memory may not be executable: the interpreter serves then.
  made->compiled_to_machine_code = pcre2_jit_compile(made->value, PCRE2_JIT_COMPLETE) == 0;
  regex r;
  r.code_ = std::move(made);
  return r;
}

struct regex_matcher::memory {
  general_context general;
  pcre2_match_data* data = pcre2_match_data_create(1, general.value);
  pcre2_match_context* context = pcre2_match_context_create(general.value);
  std::size_t limits_for = 0;  // the subject length that the limits were set for
  memory() = default;
  memory(const memory&) = delete;
  memory& operator=(const memory&) = delete;
  ~memory() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
  }
  void set_limits(std::size_t length) noexcept {
    if (limits_for >= length && limits_for != 0) return;
    limits_for = std::max<std::size_t>(length, 1);
    const auto most = std::numeric_limits<std::uint32_t>::max();
    const std::size_t steps = length < most / 64 ? 1'000'000 + 32 * length : most;
    const std::size_t kibibytes = 65'536 + std::min<std::size_t>(length / 4, 1'048'576);
    pcre2_set_match_limit(context, static_cast<std::uint32_t>(steps));
    pcre2_set_heap_limit(context, static_cast<std::uint32_t>(kibibytes));
  }
};

regex_matcher::regex_matcher() noexcept = default;
regex_matcher::~regex_matcher() = default;

result<regex_matcher::found> regex_matcher::search(const regex& expression, std::string_view subject,
                                                   std::size_t from) {
  const regex::code& code = *expression.code_;
  if (memory_ == nullptr) {  // many texts need no search
    auto made = std::make_unique<memory>();
    if (made->data == nullptr || made->context == nullptr) throw std::bad_alloc();
    memory_ = std::move(made);
  }
  memory_->set_limits(subject.size());
  const auto text = reinterpret_cast<PCRE2_SPTR>(subject.data());
  int status = PCRE2_ERROR_JIT_STACKLIMIT;
  if (code.compiled_to_machine_code)
    status =
        pcre2_jit_match(code.value, text, subject.size(), from, PCRE2_NO_UTF_CHECK, memory_->data, memory_->context);
  // Machine code has a small stack; the interpreter keeps its own on the heap.
  if (status == PCRE2_ERROR_JIT_STACKLIMIT)
    status = pcre2_match(code.value, text, subject.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, memory_->data,
                         memory_->context);
  if (status == PCRE2_ERROR_NOMATCH) return found{};
  if (status == PCRE2_ERROR_NOMEMORY) throw std::bad_alloc();
  if (status < 0)
    return error{errc::invalid_argument,
                 "the text is too intricate for the pre-tokenizer (" + describe(status) + " at byte " +
                     std::to_string(from) + "): encode it in parts",
                 "text"};
  const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(memory_->data);
  return found{true, bounds[0], bounds[1]};
}

}  // namespace flywheel::inline v0::text
