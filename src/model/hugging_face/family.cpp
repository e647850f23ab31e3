#include "src/model/hugging_face/family.hpp"

namespace flywheel::inline v0::hugging_face {

namespace {

struct registration {
  std::string_view architecture;
  const family* tables;
};

constexpr registration registrations[] = {
#define FLYWHEEL_FAMILY(name, page) {#name, &page##_family},
#include "src/model/hugging_face/families.inc"
#undef FLYWHEEL_FAMILY
};

}  // namespace

const family* find_family(std::string_view architecture) noexcept {
  for (const registration& r : registrations)
    if (r.architecture == architecture) return r.tables;
  return nullptr;
}

const family* family_of(std::string_view gguf_architecture) noexcept {
  for (const registration& r : registrations)
    if (r.tables->architecture == gguf_architecture) return r.tables;
  return nullptr;
}

std::string known_architectures() {
  std::string all;
  for (const registration& r : registrations) all += (all.empty() ? "" : ", ") + std::string(r.architecture);
  return all;
}

}  // namespace flywheel::inline v0::hugging_face
