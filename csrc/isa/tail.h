// Loops over lanes with a tail, and over the element types. Include after the lanes, inside the target region.
#pragma once
#include "layout/element.h"

namespace torch_cpullm {
namespace {

struct WholeVector {
  template <class T>
  f32x16 load(const T* p) const {
    return load_as_f32(p);
  }
  void store(float* p, f32x16 a) const { store_f32(p, a); }
  void store(uint16_t* p, f32x16 a) const { store_bf16(p, a); }
  void store(layout::float16* p, f32x16 a) const { store_f16(p, a); }
};
struct PartOfVector {
  int count;
  f32x16 load(const float* p) const { return load_f32_tail(p, count); }
  template <class T>
  f32x16 load(const T* p) const {
    T lanes[16] = {};
    std::memcpy(lanes, p, static_cast<size_t>(count) * sizeof(T));
    return load_as_f32(lanes);
  }
  void store(float* p, f32x16 a) const { store_f32_tail(p, a, count); }
  template <class T>
  void store(T* p, f32x16 a) const {
    T lanes[16];
    WholeVector{}.store(lanes, a);
    std::memcpy(p, lanes, static_cast<size_t>(count) * sizeof(T));
  }
};

// body(offset, lanes) for whole vectors, then for the tail: one text for both.
template <class Body>
inline void for_lanes(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) body(i, WholeVector{});
  if (i < n) body(i, PartOfVector{static_cast<int>(n - i)});
}

// body(typed pointer); bf16 goes by uint16_t.
template <class Body>
inline void with_type(layout::ConstElements x, const Body& body) {
  if (x.type == layout::Element::bf16) return body(static_cast<const uint16_t*>(x.data));
  if (x.type == layout::Element::f16) return body(static_cast<const layout::float16*>(x.data));
  body(static_cast<const float*>(x.data));
}
template <class Body>
inline void with_type(layout::Elements x, const Body& body) {
  if (x.type == layout::Element::bf16) return body(static_cast<uint16_t*>(x.data));
  if (x.type == layout::Element::f16) return body(static_cast<layout::float16*>(x.data));
  body(static_cast<float*>(x.data));
}

}  // namespace
}  // namespace torch_cpullm
