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
  if (activation == "relu") return kernels::Gate::relu;
  TORCH_CHECK_VALUE(false, "activation: expected 'silu', 'gelu_tanh', 'gelu_erf' or 'relu', got '",
                    std::string(activation), "'");
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

// What all norms of a layer have in common.
struct NormCommon {
  double eps, offset;
  bool centred;
};

// Holds a norm's gain and bias alive while the op runs, and their copies where they are not contiguous.
struct NormArgument {
  at::Tensor gain, shift;
  drivers::Norm norm;

  NormArgument(const OptionalTensor& weight, const OptionalTensor& bias, int64_t width, const NormCommon& common,
               const char* name) {
    TORCH_CHECK_VALUE(!bias || (weight && common.centred), name,
                      "_bias: expected none without a centred norm, got one");
    TORCH_CHECK_VALUE(!common.centred || common.offset == 0.0, "norm_offset: expected 0, since norms are centred, got ",
                      common.offset);
    if (!weight) return;
    check_float(*weight, name);
    check_dims(*weight, 1, name, "[D]");
    check_size(*weight, 0, width, name, "[D]");
    gain = weight->contiguous();
    norm.weight = elements_of(gain);
    norm.eps = static_cast<float>(common.eps);
    norm.offset = static_cast<float>(common.offset);
    norm.centred = common.centred;
    if (!bias) return;
    const std::string bias_name = std::string(name) + "_bias";
    check_type(*bias, weight->scalar_type(), bias_name.c_str());
    TORCH_CHECK_VALUE(bias->sizes() == weight->sizes(), bias_name, ": expected the shape of ", name, ", ",
                      weight->sizes(), ", got ", bias->sizes());
    shift = bias->contiguous();
    norm.bias = elements_of(shift);
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
  OptionalTensor input_norm, input_norm_bias, query_norm, key_norm, output_norm;
  at::Tensor pages;
  bool rotates = true;
};
// And what all layers may have in common.
struct AttentionCommon {
  at::Tensor cos, sin, page_table, past;
  OptionalTensor mask;
  int64_t heads, kv_heads;
  layout::Format format;
  NormCommon norm;
  double scale, soft_cap;
  bool qkv_in_groups, rope_pairs;
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
  OptionalTensor input_norm, input_norm_bias, output_norm;
};
struct MlpCommon {
  kernels::Gate activation;
  NormCommon norm;
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

// Of contiguous tensors [B, T, D] of one type.
inline drivers::LayerRows layer_rows(const at::Tensor& hidden, const at::Tensor& out) {
  return {elements_of(hidden), mutable_elements_of(out), hidden.size(0) * hidden.size(1), hidden.size(2)};
}

inline void check_hidden(const at::Tensor& hidden) {
  check_float(hidden, "hidden");
  check_dims(hidden, 3, "hidden", "[B, T, D]");
}

}  // namespace torch_cpullm::bindings
