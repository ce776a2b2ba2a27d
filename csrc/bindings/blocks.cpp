// The two halves of a decoder layer.
#include "drivers/blocks.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>

#include "bindings/block_arguments.h"
#include "bindings/kv_arguments.h"
#include "bindings/ops.h"

namespace torch_cpullm::bindings {
namespace {

// Weights that share one prepared input, `columns` outputs in all.
std::vector<layout::PackedView> check_group(at::TensorList weights, int64_t depth, int64_t columns, const char* name) {
  TORCH_CHECK_VALUE(!weights.empty(), name, ": expected at least one packed weight");
  std::vector<layout::PackedView> views;
  int64_t total = 0;
  for (const at::Tensor& weight : weights) {
    views.push_back(check_packed_weight(weight, name));
    total += views.back().columns;
    TORCH_CHECK_VALUE(views.back().depth == depth, name, ": expected ", depth, " inputs, got ", views.back().depth);
    TORCH_CHECK_VALUE(views.back().same_input(views.front()), name,
                      ": expected weights of one activation format, group size and multiplier, since they share x");
  }
  TORCH_CHECK_VALUE(total == columns, name, ": expected ", columns, " outputs in all, got ", total);
  return views;
}

std::vector<layout::PackedView> check_gate_up(at::TensorList weights, int64_t model, int64_t ffn) {
  std::vector<layout::PackedView> views = check_group(weights, model, 2 * ffn, "gate_up");
  TORCH_CHECK_VALUE(views.size() == 1 || (views.size() == 2 && views[0].columns == ffn),
                    "gate_up: expected one fused weight, or gate and up of ", ffn, " outputs each, got ", views.size(),
                    " weights, the first of ", views[0].columns, "; pass gate's and up's rows apart, or all in one");
  return views;
}

layout::PackedView check_projection(const at::Tensor& weight, int64_t depth, int64_t columns, const char* name) {
  const layout::PackedView view = check_packed_weight(weight, name);
  TORCH_CHECK_VALUE(view.depth == depth && view.columns == columns, name, ": expected ", depth, " inputs and ", columns,
                    " outputs, got ", view.depth, " and ", view.columns);
  return view;
}

}  // namespace

at::Tensor attention_block(const at::Tensor& hidden, at::TensorList qkv, const at::Tensor& output,
                           const OptionalTensor& input_norm, const OptionalTensor& query_norm,
                           const OptionalTensor& key_norm, const OptionalTensor& output_norm, const at::Tensor& cos,
                           const at::Tensor& sin, at::Tensor pages, const at::Tensor& page_table,
                           const at::Tensor& past, const OptionalTensor& mask, int64_t heads, int64_t kv_heads,
                           c10::string_view format, double eps, double norm_offset, double scale, double soft_cap) {
  check_float(hidden, "hidden");
  check_dims(hidden, 3, "hidden", "[B, T, D]");
  const int64_t batch = hidden.size(0), tokens = hidden.size(1), model = hidden.size(2);
  TORCH_CHECK_VALUE(heads >= 1, "heads: expected at least 1, got ", heads);
  const int64_t channels = check_packed_weight(output, "output").depth / heads;
  const NormArgument before(input_norm, model, eps, norm_offset, "input_norm");
  const NormArgument on_query(query_norm, channels, eps, norm_offset, "query_norm");
  const NormArgument on_key(key_norm, channels, eps, norm_offset, "key_norm");
  const NormArgument after(output_norm, model, eps, norm_offset, "output_norm");
  const RopeTables tables = check_rope(cos, sin, batch, tokens, channels);
  const KvArguments kv = check_kv(pages, page_table, past, batch, tokens, kv_heads, channels, parse_format(format));
  const ScoreArguments scores(mask, std::nullopt, std::nullopt, std::nullopt, heads, soft_cap, 0);
  drivers::AttentionBlock block{
      .qkv = check_group(qkv, model, (heads + 2 * kv_heads) * channels, "qkv"),
      .output = check_projection(output, heads * channels, model, "output"),
      .input_norm = before.norm,
      .query_norm = on_query.norm,
      .key_norm = on_key.norm,
      .output_norm = after.norm,
      .cos = tables.cos.const_data_ptr<float>(),
      .sin = tables.sin.const_data_ptr<float>(),
      .rotary = tables.rotary,
      .rope_batch_stride = tables.batch_stride,
      .attention = attention_problem(kv, batch, tokens, heads, scores, scale),
  };
  const at::Tensor rows = hidden.contiguous();
  at::Tensor out = at::empty_like(rows);
  if (hidden.numel() > 0)
    drivers::run_attention_block(block, elements_of(rows), model, mutable_elements_of(out), at::get_num_threads());
  return out;
}

at::Tensor mlp_block(const at::Tensor& hidden, at::TensorList gate_up, const at::Tensor& down,
                     const OptionalTensor& input_norm, const OptionalTensor& output_norm, c10::string_view activation,
                     double eps, double norm_offset) {
  check_float(hidden, "hidden");
  check_dims(hidden, 3, "hidden", "[B, T, D]");
  const int64_t model = hidden.size(2), ffn = check_packed_weight(down, "down").depth;
  const NormArgument before(input_norm, model, eps, norm_offset, "input_norm");
  const NormArgument after(output_norm, model, eps, norm_offset, "output_norm");
  const drivers::MlpBlock block{
      .gated = {check_gate_up(gate_up, model, ffn), parse_activation(activation), ffn},
      .down = check_projection(down, ffn, model, "down"),
      .input_norm = before.norm,
      .output_norm = after.norm,
  };
  const at::Tensor rows = hidden.contiguous();
  at::Tensor out = at::empty_like(rows);
  if (hidden.numel() > 0)
    drivers::run_mlp_block(block, elements_of(rows), hidden.size(0) * hidden.size(1), model, mutable_elements_of(out),
                           at::get_num_threads());
  return out;
}

}  // namespace torch_cpullm::bindings
