// The types of x and y at the border of the library.
#pragma once
#include <cstdint>

namespace torch_cpullm::layout {

enum class Element : uint8_t { f32, bf16, f16 };

// Elements behind a pointer of some type.
struct ConstElements {
  const void* data;
  Element type;

  ConstElements from(int64_t index) const {
    return {static_cast<const char*>(data) + index * (type == Element::f32 ? 4 : 2), type};
  }
};
struct Elements {
  void* data;
  Element type;

  operator ConstElements() const { return {data, type}; }
  Elements from(int64_t index) const {
    return {static_cast<char*>(data) + index * (type == Element::f32 ? 4 : 2), type};
  }
};

inline Elements floats(float* x) { return {x, Element::f32}; }

}  // namespace torch_cpullm::layout
