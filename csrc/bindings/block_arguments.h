// Arguments of the blocks of a decoder layer: checked, and kept alive while an op runs.
#pragma once
#include <optional>
#include <vector>

#include "bindings/check.h"
#include "bindings/comm_errors.h"
#include "bindings/kv_arguments.h"
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

// The ranks that share a block: those of an open group, or none.
class RanksArgument {
 public:
  // `number`: 0 for none.
  RanksArgument(int64_t number, const at::Tensor& hidden, const char* name) {
    if (number == 0) return;
    routes_ = translated([&] { return comm::find(number); });
    const int64_t row_bytes = hidden.size(2) * hidden.element_size();
    TORCH_CHECK_VALUE(row_bytes <= routes_->most_bytes(), name, ": expected one that sends ", row_bytes,
                      " bytes at once, a row of hidden, got one that sends ", routes_->most_bytes());
  }
  const comm::Routes* get() const { return routes_.get(); }
  // Outside of parallel regions: throws what went wrong between the ranks.
  void check() const {
    if (routes_) translated([&] { routes_->rethrow(); });
  }

 private:
  std::shared_ptr<const comm::Routes> routes_;
};

// What attention_block takes of one layer.
struct AttentionTensors {
  at::TensorList qkv;
  at::Tensor output;
  OptionalTensor input_norm, query_norm, key_norm, output_norm;
  at::Tensor pages;
};
// And what all layers may have in common.
struct AttentionCommon {
  at::Tensor cos, sin, page_table, past;
  OptionalTensor mask;
  int64_t heads, kv_heads;
  layout::Format format;
  double eps, norm_offset, scale, soft_cap;
  const comm::Routes* ranks;
};

class AttentionArguments {
 public:
  // `hidden`: [B, T, D], checked by check_hidden.
  AttentionArguments(const at::Tensor& hidden, const AttentionTensors& layer, const AttentionCommon& common);
  AttentionArguments(const AttentionArguments&) = delete;
  AttentionArguments& operator=(const AttentionArguments&) = delete;
  const drivers::AttentionBlock& block() const { return block_; }

 private:
  AttentionTensors layer_;
  AttentionCommon common_;
  int64_t channels_;
  NormArgument before_, on_query_, on_key_, after_;
  RopeTables tables_;
  ScoreArguments scores_;
  drivers::AttentionBlock block_;
};

struct MlpTensors {
  at::TensorList gate_up;
  at::Tensor down;
  OptionalTensor input_norm, output_norm;
};
struct MlpCommon {
  kernels::Gate activation;
  double eps, norm_offset;
  const comm::Routes* ranks;
};

class MlpArguments {
 public:
  MlpArguments(const at::Tensor& hidden, const MlpTensors& layer, const MlpCommon& common);
  MlpArguments(const MlpArguments&) = delete;
  MlpArguments& operator=(const MlpArguments&) = delete;
  const drivers::MlpBlock& block() const { return block_; }

 private:
  MlpTensors layer_;
  NormArgument before_, after_;
  drivers::MlpBlock block_;
};

inline void check_hidden(const at::Tensor& hidden) {
  check_float(hidden, "hidden");
  check_dims(hidden, 3, "hidden", "[B, T, D]");
}

}  // namespace torch_cpullm::bindings
