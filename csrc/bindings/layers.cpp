// All decoder layers of one step: attention_block and mlp_block of each in turn, or both at once in layers where they
// are parallel; checked and laid out first, then run in one parallel region. The bits are those of single calls, since
// the stages are.
#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>

#include <deque>

#include "bindings/block_arguments.h"
#include "bindings/ops.h"

namespace torch_cpullm::bindings {
namespace {

// Tensors of one kind, `each` for every layer, or none at all.
class PerLayer {
 public:
  PerLayer(at::TensorList tensors, size_t layers, const char* name)
      : tensors_(tensors), each_(tensors.size() / layers) {
    TORCH_CHECK_VALUE(each_ * layers == tensors.size(), name, ": expected equally many for each of ", layers,
                      " layers, got ", tensors.size());
  }
  at::TensorList of(size_t layer) const { return tensors_.slice(layer * each_, each_); }

 private:
  at::TensorList tensors_;
  size_t each_;
};

// At most one tensor for every layer.
class OnePerLayer {
 public:
  OnePerLayer(at::TensorList tensors, size_t layers, const char* name, bool required) : tensors_(tensors) {
    TORCH_CHECK_VALUE(tensors.size() == layers || (tensors.empty() && !required), name, ": expected one for each of ",
                      layers, " layers", required ? "" : ", or none", ", got ", tensors.size());
  }
  const at::Tensor& of(size_t layer) const { return tensors_[layer]; }
  OptionalTensor maybe(size_t layer) const { return tensors_.empty() ? OptionalTensor() : tensors_[layer]; }

 private:
  at::TensorList tensors_;
};

}  // namespace

at::Tensor decoder_layers(const at::Tensor& hidden, at::TensorList qkv, at::TensorList output,
                          at::TensorList attention_norm, at::TensorList attention_norm_bias, at::TensorList query_norm,
                          at::TensorList key_norm, at::TensorList attention_output_norm, at::TensorList gate_up,
                          at::TensorList down, at::TensorList mlp_norm, at::TensorList mlp_norm_bias,
                          at::TensorList mlp_output_norm, const at::Tensor& cos, const at::Tensor& sin,
                          at::IntArrayRef unrotated, at::TensorList pages, const at::Tensor& page_table,
                          const at::Tensor& past, const OptionalTensor& mask, int64_t heads, int64_t kv_heads,
                          c10::string_view format, c10::string_view activation, double eps, double norm_offset,
                          bool centred, double scale, double soft_cap, bool qkv_in_groups, bool rope_pairs,
                          bool parallel, int64_t attention_group, int64_t mlp_group) {
  const size_t layers = output.size();
  TORCH_CHECK_VALUE(layers >= 1, "output: expected one packed weight for each layer, got none");
  const PerLayer qkv_of(qkv, layers, "qkv"), gate_up_of(gate_up, layers, "gate_up");
  const OnePerLayer before_attention(attention_norm, layers, "attention_norm", false),
      attention_bias(attention_norm_bias, layers, "attention_norm_bias", false),
      on_query(query_norm, layers, "query_norm", false), on_key(key_norm, layers, "key_norm", false),
      after_attention(attention_output_norm, layers, "attention_output_norm", false),
      down_of(down, layers, "down", true), before_mlp(mlp_norm, layers, "mlp_norm", false),
      mlp_bias(mlp_norm_bias, layers, "mlp_norm_bias", false),
      after_mlp(mlp_output_norm, layers, "mlp_output_norm", false), pages_of(pages, layers, "pages", true);
  TORCH_CHECK_VALUE(!parallel || (attention_output_norm.empty() && mlp_output_norm.empty()),
                    "attention_output_norm and mlp_output_norm: expected none, since the layers are parallel");
  check_hidden(hidden);
  check_float(cos, "cos");
  check_float(sin, "sin");
  const RanksArgument attention_ranks(attention_group, hidden, "attention_group");
  const RanksArgument mlp_ranks(mlp_group, hidden, "mlp_group");
  const NormCommon norm{eps, norm_offset, centred};
  const AttentionCommon attention_common{
      as_floats(cos),       as_floats(sin), page_table, past,     mask,          heads,      kv_heads,
      parse_format(format), norm,           scale,      soft_cap, qkv_in_groups, rope_pairs, attention_ranks.get()};
  const MlpCommon mlp_common{parse_activation(activation), norm, mlp_ranks.get()};
  std::vector<bool> rotates(layers, true);
  for (const int64_t i : unrotated) {
    TORCH_CHECK_VALUE(i >= 0 && i < static_cast<int64_t>(layers), "unrotated: expected numbers of the ", layers,
                      " layers, got ", i);
    rotates[static_cast<size_t>(i)] = false;
  }
  std::deque<AttentionArguments> attention;
  std::deque<MlpArguments> mlp;
  for (size_t i = 0; i < layers; ++i) {
    attention.emplace_back(
        hidden,
        AttentionTensors{qkv_of.of(i), output[i], before_attention.maybe(i), attention_bias.maybe(i), on_query.maybe(i),
                         on_key.maybe(i), after_attention.maybe(i), pages_of.of(i), rotates[i]},
        attention_common);
    mlp.emplace_back(
        hidden, MlpTensors{gate_up_of.of(i), down_of.of(i), before_mlp.maybe(i), mlp_bias.maybe(i), after_mlp.maybe(i)},
        mlp_common);
  }
  const at::Tensor rows = hidden.contiguous();
  // What comes next reads what came before wrote, and writes where that had read.
  at::Tensor between = at::empty_like(rows), out = at::empty_like(rows);
  if (hidden.numel() == 0) return out;
  const int threads = at::get_num_threads();
  const runtime::ThreadBlock terms(parallel ? static_cast<size_t>(rows.numel()) * sizeof(float) : 0);
  drivers::Stages stages;
  at::Tensor before = rows;
  for (size_t i = 0; i < layers; ++i) {
    if (parallel) {
      const at::Tensor& after = (layers - i) % 2 == 1 ? out : between;  // the last one's is out
      drivers::add_parallel_stages(stages, attention[i].block(), mlp[i].block(), layer_rows(before, after),
                                   reinterpret_cast<float*>(terms.data()), threads);
      before = after;
    } else {
      drivers::add_stages(stages, attention[i].block(), layer_rows(before, between), threads);
      drivers::add_stages(stages, mlp[i].block(), layer_rows(between, out), threads);
      before = out;
    }
  }
  drivers::run_stages(stages, threads);
  attention_ranks.check();
  mlp_ranks.check();
  return out;
}

}  // namespace torch_cpullm::bindings
