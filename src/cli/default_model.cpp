// Three ways to hold the model's bytes, chosen by CMake (default_model.cmake): the assembler's .incbin, which takes
// no compile time; an array in a generated source, for compilers without GNU assembler syntax; or none.
#include "default_model.hpp"

#include <bit>
#include <cstdint>

#if defined(FLYWHEEL_EMBED_INCBIN)

#  if defined(__APPLE__)
#    define SECTION ".const_data\n"
#    define END ".text\n"
#    define SYMBOL(name) "_" name
#  elif defined(_WIN32)
#    define SECTION ".section .rdata, \"dr\"\n"
#    define END ".text\n"
#    define SYMBOL(name) name
#  else
#    define SECTION ".pushsection .rodata, \"a\"\n"
#    define END ".popsection\n"
#    define SYMBOL(name) name
#  endif

// clang-format off
__asm__(SECTION
        ".balign 64\n"
        ".globl " SYMBOL("flywheel_default_model_begin") "\n"
        ".globl " SYMBOL("flywheel_default_model_end") "\n"
        SYMBOL("flywheel_default_model_begin") ":\n"
        ".incbin \"" FLYWHEEL_EMBED_INCBIN "\"\n"
        SYMBOL("flywheel_default_model_end") ":\n"
        ".byte 0\n"
        END);
// clang-format on
extern "C" const std::byte flywheel_default_model_begin[];
extern "C" const std::byte flywheel_default_model_end[];

namespace flywheel::cli {
std::span<const std::byte> default_model() noexcept { return {flywheel_default_model_begin, flywheel_default_model_end}; }
}  // namespace flywheel::cli

#elif defined(FLYWHEEL_EMBED_ARRAY)

// 8 bytes to a word, least significant first, as cmake/embed.cmake writes them.
#  include "default_model_data.inc"

namespace flywheel::cli {
static_assert(std::endian::native == std::endian::little);
std::span<const std::byte> default_model() noexcept {
  return std::as_bytes(std::span(default_model_words)).first(default_model_size);
}
}  // namespace flywheel::cli

#else

namespace flywheel::cli {
std::span<const std::byte> default_model() noexcept { return {}; }
}  // namespace flywheel::cli

#endif

namespace flywheel::cli {
const char* default_model_name() noexcept { return FLYWHEEL_EMBED_NAME; }
}  // namespace flywheel::cli
