#include "bindings/block_arguments.h"

namespace torch_cpullm::bindings {
namespace {

// Weights that share one prepared input.
std::vector<layout::PackedView> check_group(at::TensorList weights, int64_t depth, const char* name) {
  TORCH_CHECK_VALUE(!weights.empty(), name, ": expected at least one packed weight");
  std::vector<layout::PackedView> views;
  for (const at::Tensor& weight : weights) {
    views.push_back(check_packed_weight(weight, name));
    TORCH_CHECK_VALUE(views.back().depth == depth, name, ": expected ", depth, " inputs, got ", views.back().depth);
    TORCH_CHECK_VALUE(views.back().same_input(views.front()), name,
                      ": expected weights of one activation format, group size and multiplier, since they share x");
  }
  return views;
}

int64_t columns_of(const std::vector<layout::PackedView>& views) {
  int64_t total = 0;
  for (const layout::PackedView& view : views) total += view.columns;
  return total;
}

std::vector<layout::PackedView> check_qkv(at::TensorList weights, int64_t model, int64_t columns, bool in_groups) {
  std::vector<layout::PackedView> views = check_group(weights, model, "qkv");
  TORCH_CHECK_VALUE(columns_of(views) == columns, "qkv: expected ", columns, " outputs in all, got ",
                    columns_of(views));
  TORCH_CHECK_VALUE(!in_groups || views.size() == 1, "qkv: expected one fused weight, since heads are in groups, got ",
                    views.size());
  return views;
}

std::vector<layout::PackedView> check_gate_up(at::TensorList weights, int64_t model, int64_t ffn) {
  std::vector<layout::PackedView> views = check_group(weights, model, "gate_up");
  const int64_t total = columns_of(views);
  TORCH_CHECK_VALUE(total == 2 * ffn || (total == ffn && views.size() == 1), "gate_up: expected ", 2 * ffn,
                    " outputs in all, or ", ffn, " of one weight where there is no gate, got ", total, " of ",
                    views.size());
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

int64_t check_heads(int64_t heads) {
  TORCH_CHECK_VALUE(heads >= 1, "heads: expected at least 1, got ", heads);
  return heads;
}

}  // namespace

AttentionArguments::AttentionArguments(const at::Tensor& hidden, const AttentionTensors& layer,
                                       const AttentionCommon& common)
    : layer_(layer),
      common_(common),
      channels_(check_packed_weight(layer.output, "output").depth / check_heads(common.heads)),
      before_(layer.input_norm, layer.input_norm_bias, hidden.size(2), common.norm, "input_norm"),
      on_query_(layer.query_norm, std::nullopt, channels_, common.norm, "query_norm"),
      on_key_(layer.key_norm, std::nullopt, channels_, common.norm, "key_norm"),
      after_(layer.output_norm, std::nullopt, hidden.size(2), common.norm, "output_norm"),
      tables_(check_rope(common.cos, common.sin, hidden.size(0), hidden.size(1), channels_)),
      scores_(common.mask, std::nullopt, std::nullopt, std::nullopt, common.heads, common.soft_cap, 0) {
  const int64_t batch = hidden.size(0), tokens = hidden.size(1), model = hidden.size(2);
  const KvArguments kv =
      check_kv(layer.pages, common.page_table, common.past, batch, tokens, common.kv_heads, channels_, common.format);
  block_ = {
      .qkv = check_qkv(layer.qkv, model, (common.heads + 2 * common.kv_heads) * channels_, common.qkv_in_groups),
      .output = check_projection(layer.output, common.heads * channels_, model, "output"),
      .input_norm = before_.norm,
      .output_norm = after_.norm,
      .rows = {.in_groups = common.qkv_in_groups,
               .rope_pairs = common.rope_pairs,
               .query_norm = on_query_.norm,
               .key_norm = on_key_.norm,
               .cos = tables_.cos.const_data_ptr<float>(),
               .sin = tables_.sin.const_data_ptr<float>(),
               .rotary = layer.rotates ? tables_.rotary : 0,
               .rope_batch_stride = tables_.batch_stride},
      .attention = attention_problem(kv, batch, tokens, common.heads, scores_, common.scale),
      .ranks = common.ranks,
  };
}

MlpArguments::MlpArguments(const at::Tensor& hidden, const MlpTensors& layer, const MlpCommon& common)
    : layer_(layer),
      before_(layer.input_norm, layer.input_norm_bias, hidden.size(2), common.norm, "input_norm"),
      after_(layer.output_norm, std::nullopt, hidden.size(2), common.norm, "output_norm") {
  const int64_t model = hidden.size(2), ffn = check_packed_weight(layer.down, "down").depth;
  block_ = {
      .gated = {check_gate_up(layer.gate_up, model, ffn), common.activation, ffn},
      .down = check_projection(layer.down, ffn, model, "down"),
      .input_norm = before_.norm,
      .output_norm = after_.norm,
      .ranks = common.ranks,
  };
}

}  // namespace torch_cpullm::bindings
