// The two halves of a decoder layer.
#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>

#include "bindings/block_arguments.h"
#include "bindings/ops.h"

namespace torch_cpullm::bindings {

at::Tensor attention_block(const at::Tensor& hidden, at::TensorList qkv, const at::Tensor& output,
                           const OptionalTensor& input_norm, const OptionalTensor& input_norm_bias,
                           const OptionalTensor& query_norm, const OptionalTensor& key_norm,
                           const OptionalTensor& output_norm, const at::Tensor& cos, const at::Tensor& sin,
                           at::Tensor pages, const at::Tensor& page_table, const at::Tensor& past,
                           const OptionalTensor& mask, int64_t heads, int64_t kv_heads, c10::string_view format,
                           double eps, double norm_offset, bool centred, double scale, double soft_cap,
                           bool qkv_in_groups, bool rope_pairs, int64_t group) {
  check_hidden(hidden);
  const RanksArgument ranks(group, hidden, "group");
  const AttentionArguments arguments(
      hidden, {qkv, output, input_norm, input_norm_bias, query_norm, key_norm, output_norm, pages},
      {cos,
       sin,
       page_table,
       past,
       mask,
       heads,
       kv_heads,
       parse_format(format),
       {eps, norm_offset, centred},
       scale,
       soft_cap,
       qkv_in_groups,
       rope_pairs,
       ranks.get()});
  const at::Tensor rows = hidden.contiguous();
  at::Tensor out = at::empty_like(rows);
  if (hidden.numel() == 0) return out;
  const int threads = at::get_num_threads();
  drivers::Stages stages;
  drivers::add_stages(stages, arguments.block(), layer_rows(rows, out), threads);
  drivers::run_stages(stages, threads);
  ranks.check();
  return out;
}

at::Tensor mlp_block(const at::Tensor& hidden, at::TensorList gate_up, const at::Tensor& down,
                     const OptionalTensor& input_norm, const OptionalTensor& input_norm_bias,
                     const OptionalTensor& output_norm, c10::string_view activation, double eps, double norm_offset,
                     bool centred, int64_t group) {
  check_hidden(hidden);
  const RanksArgument ranks(group, hidden, "group");
  const MlpArguments arguments(hidden, {gate_up, down, input_norm, input_norm_bias, output_norm},
                               {parse_activation(activation), {eps, norm_offset, centred}, ranks.get()});
  const at::Tensor rows = hidden.contiguous();
  at::Tensor out = at::empty_like(rows);
  if (hidden.numel() == 0) return out;
  const int threads = at::get_num_threads();
  drivers::Stages stages;
  drivers::add_stages(stages, arguments.block(), layer_rows(rows, out), threads);
  drivers::run_stages(stages, threads);
  ranks.check();
  return out;
}

}  // namespace torch_cpullm::bindings
