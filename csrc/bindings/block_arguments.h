// Arguments that several ops share: activation names, rope tables, norm gains.
#pragma once
#include <optional>

#include "bindings/check.h"
#include "drivers/blocks.h"

namespace torch_cpullm::bindings {

inline kernels::Gate parse_activation(c10::string_view activation) {
  if (activation == "silu") return kernels::Gate::silu;
  if (activation == "gelu_tanh") return kernels::Gate::gelu_tanh;
  if (activation == "gelu_erf") return kernels::Gate::gelu_erf;
  TORCH_CHECK_VALUE(false, "activation: expected 'silu', 'gelu_tanh' or 'gelu_erf', got '", std::string(activation),
                    "'");
}

struct RopeTables {
  at::Tensor cos, sin;  // float32, contiguous
  int64_t rotary, batch_stride;
};

inline RopeTables check_rope(const at::Tensor& cos, const at::Tensor& sin, int64_t batch, int64_t tokens,
                             int64_t channels) {
  check_float(cos, "cos");
  check_float(sin, "sin");
  check_dims(cos, 3, "cos", "[B or 1, T, R]");
  TORCH_CHECK_VALUE(cos.sizes() == sin.sizes(), "sin: expected cos's shape ", cos.sizes(), ", got ", sin.sizes());
  TORCH_CHECK_VALUE((cos.size(0) == batch || cos.size(0) == 1) && cos.size(1) == tokens, "cos: expected [", batch,
                    " or 1, ", tokens, ", R], got ", cos.sizes());
  const int64_t rotary = cos.size(2);
  TORCH_CHECK_VALUE(rotary % 2 == 0 && rotary <= channels, "cos: expected an even number of rotated channels up to ",
                    channels, ", got ", rotary);
  return {as_floats(cos), as_floats(sin), rotary, cos.size(0) == 1 ? 0 : tokens * rotary};
}

// Holds a norm's gain alive while the op runs, and its copy where it is not contiguous.
struct NormArgument {
  at::Tensor gain;
  drivers::Norm norm;

  NormArgument(const std::optional<at::Tensor>& weight, int64_t width, double eps, double offset, const char* name) {
    if (!weight) return;
    check_float(*weight, name);
    check_dims(*weight, 1, name, "[D]");
    check_size(*weight, 0, width, name, "[D]");
    gain = weight->contiguous();
    norm = {elements_of(gain), static_cast<float>(eps), static_cast<float>(offset)};
  }
};

}  // namespace torch_cpullm::bindings
