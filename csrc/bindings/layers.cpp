// All decoder layers of one step: attention_block and mlp_block of each in turn, without Python between them. The bits
// are those of the single calls, since these are the calls.
#include "bindings/check.h"
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
                          at::TensorList attention_norm, at::TensorList query_norm, at::TensorList key_norm,
                          at::TensorList attention_output_norm, at::TensorList gate_up, at::TensorList down,
                          at::TensorList mlp_norm, at::TensorList mlp_output_norm, const at::Tensor& cos,
                          const at::Tensor& sin, at::TensorList pages, const at::Tensor& page_table,
                          const at::Tensor& past, const OptionalTensor& mask, int64_t heads, int64_t kv_heads,
                          c10::string_view format, c10::string_view activation, double eps, double norm_offset,
                          double scale, double soft_cap) {
  const size_t layers = output.size();
  TORCH_CHECK_VALUE(layers >= 1, "output: expected one packed weight for each layer, got none");
  const PerLayer qkv_of(qkv, layers, "qkv"), gate_up_of(gate_up, layers, "gate_up");
  const OnePerLayer before_attention(attention_norm, layers, "attention_norm", false),
      on_query(query_norm, layers, "query_norm", false), on_key(key_norm, layers, "key_norm", false),
      after_attention(attention_output_norm, layers, "attention_output_norm", false),
      down_of(down, layers, "down", true), before_mlp(mlp_norm, layers, "mlp_norm", false),
      after_mlp(mlp_output_norm, layers, "mlp_output_norm", false), pages_of(pages, layers, "pages", true);
  check_float(cos, "cos");
  check_float(sin, "sin");
  const at::Tensor cos_f32 = cos.to(at::kFloat), sin_f32 = sin.to(at::kFloat);  // once for all layers
  at::Tensor x = hidden;
  for (size_t i = 0; i < layers; ++i) {
    x = attention_block(x, qkv_of.of(i), output[i], before_attention.maybe(i), on_query.maybe(i), on_key.maybe(i),
                        after_attention.maybe(i), cos_f32, sin_f32, pages_of.of(i), page_table, past, mask, heads,
                        kv_heads, format, eps, norm_offset, scale, soft_cap);
    x = mlp_block(x, gate_up_of.of(i), down_of.of(i), before_mlp.maybe(i), after_mlp.maybe(i), activation, eps,
                  norm_offset);
  }
  return x;
}

}  // namespace torch_cpullm::bindings
