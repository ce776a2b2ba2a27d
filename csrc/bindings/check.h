// The sentences of misuse: each names the argument, what was expected, what came, and what to do. No arithmetic here.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

#include <optional>
#include <string>

#include "layout/element.h"
#include "layout/kv_page.h"
#include "layout/packed.h"

namespace torch_cpullm::bindings {

using OptionalTensor = std::optional<at::Tensor>;

inline void check_cpu(const at::Tensor& x, const char* name) {
  TORCH_CHECK(x.device().is_cpu(), name, ": expected a tensor on the CPU, got one on ", x.device(),
              "; call .cpu() first");
}

inline void check_float(const at::Tensor& x, const char* name) {
  check_cpu(x, name);
  const at::ScalarType type = x.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf, name,
                   ": expected float32, bfloat16 or float16, got ", type);
  TORCH_CHECK_NOT_IMPLEMENTED(
      !(at::GradMode::is_enabled() && x.requires_grad()), name,
      ": this op has no gradient; call it under torch.no_grad(), or train the unoptimised model");
}

inline void check_type(const at::Tensor& x, at::ScalarType type, const char* name) {
  check_cpu(x, name);
  TORCH_CHECK_TYPE(x.scalar_type() == type, name, ": expected ", type, ", got ", x.scalar_type());
}

inline void check_dims(const at::Tensor& x, int64_t dims, const char* name, const char* shape) {
  TORCH_CHECK_VALUE(x.dim() == dims, name, ": expected shape ", shape, ", got ", x.sizes());
}

inline void check_size(const at::Tensor& x, int64_t dim, int64_t size, const char* name, const char* shape) {
  TORCH_CHECK_VALUE(x.size(dim) == size, name, ": expected shape ", shape, " with size ", size, " in dimension ", dim,
                    ", got ", x.sizes());
}

inline layout::Element element_of(at::ScalarType type) {
  return type == at::kBFloat16 ? layout::Element::bf16
         : type == at::kHalf   ? layout::Element::f16
                               : layout::Element::f32;
}

// Rows of floats, contiguous: what most drivers work on. A copy only where the tensor is something else.
inline at::Tensor as_floats(const at::Tensor& x) { return x.to(at::kFloat).contiguous(); }

// Of a contiguous tensor of one of the three types.
inline layout::ConstElements elements_of(const at::Tensor& x) {
  return {x.const_data_ptr(), element_of(x.scalar_type())};
}
inline layout::Elements mutable_elements_of(const at::Tensor& x) {
  return {x.mutable_data_ptr(), element_of(x.scalar_type())};
}

inline layout::Format parse_format(c10::string_view format) {
  if (format == "int8") return layout::Format::int8;
  if (format == "bf16") return layout::Format::bf16;
  if (format == "f32") return layout::Format::f32;
  TORCH_CHECK_VALUE(false, "format: expected 'int8', 'bf16' or 'f32', got '", std::string(format), "'");
}

inline layout::PackedView check_packed_weight(const at::Tensor& packed, const char* name) {
  check_type(packed, at::kByte, name);
  TORCH_CHECK_VALUE(packed.dim() == 1 && packed.is_contiguous(), name,
                    ": expected the one-dimensional contiguous tensor that pack() returns, got shape ", packed.sizes());
  TORCH_CHECK_VALUE(reinterpret_cast<uintptr_t>(packed.const_data_ptr()) % alignof(float) == 0, name,
                    ": expected bytes at an address divisible by ", alignof(float),
                    "; call .clone() on the slice first");
  const char* fault = layout::check_packed(packed.const_data_ptr<uint8_t>(), packed.numel());
  TORCH_CHECK_VALUE(fault == nullptr, name, ": the packed weight ", fault ? fault : "");
  return layout::view_packed(packed.const_data_ptr<uint8_t>());
}

inline void check_channels(int64_t channels) {
  TORCH_CHECK_VALUE(channels >= 16 && channels % 16 == 0 && channels <= layout::kMaxHeadChannels,
                    "head size: expected a multiple of 16 up to ", layout::kMaxHeadChannels, ", got ", channels,
                    "; keep the model's own attention for this model");
}

}  // namespace torch_cpullm::bindings
