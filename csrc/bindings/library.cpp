// Every operator of torch_cpullm, on one page. Shapes: B batch, T new tokens, S cached tokens, D model, H query heads,
// G KV heads, C head channels, N and K outputs and inputs of a linear layer.
#include <torch/library.h>

#include "bindings/ops.h"
#include "drivers/attention.h"

TORCH_LIBRARY(torch_cpullm, m) {
  // weight[N, K], bias[N] -> packed bytes (layout/packed.h). codes: f32, bf16, int8, int4; activation: the codes' own,
  // or int8 or bf16 for quantised ones; group: k that share a scale (0: all of a row). multiplier[K] moves a factor
  // from the weight to x; scale[N, groups] and zero[N, groups] are used instead of round-to-nearest's own. lasting:
  // side by side with other weights in memory.
  m.def(
      "pack(Tensor weight, Tensor? bias, str codes, str activation, int group, bool asymmetric, Tensor? multiplier, "
      "Tensor? scale, Tensor? zero, bool lasting) -> Tensor");
  // -> float32 weight[N, K], dequantised, without the bias.
  m.def("unpack(Tensor packed) -> Tensor");
  // The same bytes where the kernels read them fastest: aligned, on huge pages.
  m.def("copy_packed(Tensor packed) -> Tensor");
  // Rows rows[0] .. rows[1] - 1, rows[2] .. and their inputs first .. stop - 1, packed; the values are the whole's.
  m.def("slice_packed(Tensor packed, int[] rows, int first, int stop, bool bias) -> Tensor");
  // -> [N, K, codes, activation, group, asymmetric, has bias, has multiplier, layout version]
  m.def("packed_info(Tensor packed) -> int[]");
  // x[..., K] -> [..., N] in x's dtype.
  m.def("linear(Tensor x, Tensor packed) -> Tensor");
  // Rows of the packed weight, dequantised: ids[...] -> [..., K].
  m.def("embed(Tensor ids, Tensor packed, ScalarType dtype) -> Tensor");

  // x[..., D] / rms(x) * (weight[D] + offset)
  m.def("rms_norm(Tensor x, Tensor weight, float eps, float offset) -> Tensor");
  // (x[..., D] - mean) / standard deviation * weight[D] + bias[D]
  m.def("layer_norm(Tensor x, Tensor weight, Tensor? bias, float eps) -> Tensor");
  // x[B, T, H, C], cos and sin [B or 1, T, R], R <= C channels are rotated: i with i + R / 2, or pairs i, i + 1.
  m.def("rope(Tensor x, Tensor cos, Tensor sin, bool pairs) -> Tensor");
  // activation(gate) * up, or activation(gate); activation: silu, gelu_tanh, gelu_erf, relu.
  m.def("gated(Tensor gate, Tensor? up, str activation) -> Tensor");
  // residual + (parts[0] + parts[1] + ...), summed in float in that order, rounded once to the residual's or parts'
  // type.
  m.def("sum_parts(Tensor[] parts, Tensor? residual) -> Tensor");

  // One token for each row of logits[B, V]: repetition penalty for ids[B, S], temperature, top-k, top-p, min-p, then
  // the inverse of the cumulative sum at uniform[B] in [0, 1). top_k 0, top_p 1, min_p 0, penalty 1: not filtered.
  m.def(
      "sample(Tensor logits, Tensor? ids, Tensor uniform, float temperature, int top_k, float top_p, float min_p, "
      "float repetition_penalty) -> Tensor");

  // Bytes of one layer's share of a page, and tokens in a page (layout/kv_page.h).
  m.def("kv_layer_bytes(int kv_heads, int channels, str format) -> int");
  m.def("kv_page_tokens() -> int");
  // key, value [B, T, G, C] become tokens past[b] .. past[b] + T - 1 of sequence b. pages uint8 [pages, layer bytes],
  // page_table int32 [B, pages of the longest], past int32 [B].
  m.def("kv_append(Tensor(a!) pages, Tensor page_table, Tensor past, Tensor key, Tensor value, str format) -> ()");
  // -> float32 key, value [B, G, length, C], dequantised.
  m.def(
      "kv_gather(Tensor pages, Tensor page_table, SymInt length, SymInt kv_heads, SymInt channels, str format) -> "
      "(Tensor, Tensor)");
  // query[B, T, H, C] over the first past[b] + T cached tokens -> [B, T, H, C], causal and no further back than
  // `window` tokens (0: all). mask [B or 1, H or 1, T, S]: bool, or float to be added, instead of causal; tree int64
  // [B, T]: bit j of a row shows it query token j. sinks[H]: scores without a value; slopes[H]: ALiBi.
  m.def(
      "paged_attention(Tensor query, Tensor pages, Tensor page_table, Tensor past, Tensor? mask, Tensor? tree, "
      "Tensor? sinks, Tensor? slopes, SymInt kv_heads, str format, float scale, float soft_cap, SymInt window) -> "
      "Tensor");
  // The same over dense key, value [B, S, G, C]; the queries are the last T of the S tokens.
  m.def(
      "slim_attention(Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? sinks, Tensor? slopes, float "
      "scale, "
      "float soft_cap, SymInt window) -> Tensor");
  // Query tokens up to this place in their sequence are attended to with whole score rows, those behind with a running
  // maximum: a matter of speed, the bits are the same (drivers/attention.h).
  m.def("set_slim_tokens(int tokens) -> ()", torch_cpullm::bindings::set_slim_tokens);
  m.def("slim_tokens() -> int", torch_cpullm::drivers::slim_tokens);

  // One half of a decoder layer each (drivers/blocks.h): hidden[B, T, D] -> [B, T, D], residual added. With a group
  // (0: none) its ranks have a part of the weights each, and the whole output. centred: norms are layer_norm, else
  // rms_norm. qkv_in_groups: each KV head's query heads, key and value side by side.
  m.def(
      "attention_block(Tensor hidden, Tensor[] qkv, Tensor output, Tensor? input_norm, Tensor? input_norm_bias, "
      "Tensor? query_norm, Tensor? key_norm, Tensor? output_norm, Tensor cos, Tensor sin, Tensor(a!) pages, "
      "Tensor page_table, Tensor past, Tensor? mask, SymInt heads, SymInt kv_heads, str format, float eps, "
      "float norm_offset, bool centred, float scale, float soft_cap, bool qkv_in_groups, bool rope_pairs, int group) "
      "-> "
      "Tensor");
  m.def(
      "mlp_block(Tensor hidden, Tensor[] gate_up, Tensor down, Tensor? input_norm, Tensor? input_norm_bias, "
      "Tensor? output_norm, str activation, float eps, float norm_offset, bool centred, int group) -> Tensor");

  // attention_block and mlp_block of all layers in turn; parallel: both of a layer's hidden, and their sum. Lists hold
  // as many tensors for each layer, in the layers' order; a list of norms may be empty: no norm at this place.
  // unrotated: layers whose queries and keys stay as they are.
  m.def(
      "decoder_layers(Tensor hidden, Tensor[] qkv, Tensor[] output, Tensor[] attention_norm, "
      "Tensor[] attention_norm_bias, Tensor[] query_norm, Tensor[] key_norm, Tensor[] attention_output_norm, "
      "Tensor[] gate_up, Tensor[] down, Tensor[] mlp_norm, Tensor[] mlp_norm_bias, Tensor[] mlp_output_norm, "
      "Tensor cos, Tensor sin, int[] unrotated, Tensor(a!)[] pages, Tensor page_table, Tensor past, Tensor? mask, "
      "SymInt heads, "
      "SymInt kv_heads, str format, str activation, float eps, float norm_offset, bool centred, float scale, "
      "float soft_cap, bool qkv_in_groups, bool rope_pairs, bool parallel, int attention_group, int mlp_group) -> "
      "Tensor");

  // Between the ranks of a group (csrc/comm), which all call with the same shapes. all_reduce_: summed in float, in the
  // order of ranks, rounded once. all_gather: x -> [size, ...]. x is contiguous where it is written.
  m.def("all_reduce_(Tensor(a!) x, int group) -> ()");
  m.def("broadcast_(Tensor(a!) x, int root, int group) -> ()");
  m.def("all_gather(Tensor x, int group) -> Tensor");
  m.def("barrier(int group, float? timeout_s) -> ()");
  // One number for several groups: parts of up to limits[i] bytes go by groups[i], all others by the last.
  m.def("route_groups(int[] groups, int[] limits) -> int");
  m.def("close_group(int group) -> ()");
  m.def("group_info(int group) -> (str transport, int rank, int size, int collectives)");
  // Shared memory of one host: rank 0 creates, the others open what it hands them (pid, descriptor, token).
  m.def("shm_create(int size, int part_bytes, float timeout_s) -> (int group, int pid, int descriptor, int token)");
  m.def("shm_open(int pid, int descriptor, int token, int rank, float timeout_s) -> int");
  // Any hosts: rank 0 starts and hands the address to the others; `library` is the path of _ccl.so. gloo: a process
  // group of torch by its name. pids[rank]: 0 where it cannot be watched; crowded: ranks share CPUs.
  m.def("ccl_start(str library) -> Tensor address");
  m.def("open_ccl(str library, Tensor address, int rank, int[] pids, float timeout_s, bool crowded) -> int");
  m.def("open_gloo(str name, int[] pids, float timeout_s, bool crowded) -> int");

  // The machine's limits: bytes/s over a float32 buffer; operations/s of f32, bf16 or int8 multiply-adds (0: the CPU
  // has no such instruction); seconds for a cache line to another thread and back.
  m.def("probe_read_bandwidth(Tensor buffer, int threads, int repeats) -> float");
  m.def("probe_peak(str instruction, int threads, int milliseconds) -> float");
  m.def("probe_round_trip(int iterations) -> float");

  // What runs: level in use, what is wrong with TORCH_CPULLM_ISA (empty: nothing), CPUID features of the machine,
  // kernels with their counts.
  // Bytes of working memory the last op of this thread laid out.
  m.def("scratch_bytes() -> int", torch_cpullm::bindings::scratch_bytes);
  m.def("isa_level() -> str", torch_cpullm::bindings::isa_level);
  m.def("isa_fault() -> str", torch_cpullm::bindings::isa_fault);
  m.def("cpu_features() -> str", torch_cpullm::bindings::cpu_features);
  m.def("kernel_report() -> str", torch_cpullm::bindings::kernel_report);
}

TORCH_LIBRARY_IMPL(torch_cpullm, CPU, m) {
  namespace ops = torch_cpullm::bindings;
  m.impl("pack", ops::pack);
  m.impl("unpack", ops::unpack);
  m.impl("copy_packed", ops::copy_packed);
  m.impl("slice_packed", ops::slice_packed);
  m.impl("packed_info", ops::packed_info);
  m.impl("linear", ops::linear);
  m.impl("embed", ops::embed);
  m.impl("rms_norm", ops::rms_norm);
  m.impl("layer_norm", ops::layer_norm);
  m.impl("rope", ops::rope);
  m.impl("gated", ops::gated);
  m.impl("sum_parts", ops::sum_parts);
  m.impl("sample", ops::sample);
  m.impl("kv_append", ops::kv_append);
  m.impl("kv_gather", ops::kv_gather);
  m.impl("paged_attention", ops::paged_attention);
  m.impl("slim_attention", ops::slim_attention);
  m.impl("attention_block", ops::attention_block);
  m.impl("mlp_block", ops::mlp_block);
  m.impl("decoder_layers", ops::decoder_layers);
  m.impl("all_reduce_", ops::all_reduce_);
  m.impl("broadcast_", ops::broadcast_);
  m.impl("all_gather", ops::all_gather);
  m.impl("probe_read_bandwidth", ops::probe_read_bandwidth);
}

// No tensor argument, so no dispatch key to register under.
TORCH_LIBRARY_IMPL(torch_cpullm, CompositeExplicitAutograd, m) {
  m.impl("kv_layer_bytes", torch_cpullm::bindings::kv_layer_bytes);
  m.impl("kv_page_tokens", torch_cpullm::bindings::kv_page_tokens);
  m.impl("barrier", torch_cpullm::bindings::barrier);
  m.impl("ccl_start", torch_cpullm::bindings::ccl_start);
  m.impl("open_ccl", torch_cpullm::bindings::open_ccl);
  m.impl("open_gloo", torch_cpullm::bindings::open_gloo);
  m.impl("route_groups", torch_cpullm::bindings::route_groups);
  m.impl("close_group", torch_cpullm::bindings::close_group);
  m.impl("group_info", torch_cpullm::bindings::group_info);
  m.impl("shm_create", torch_cpullm::bindings::shm_create);
  m.impl("shm_open", torch_cpullm::bindings::shm_open);
  m.impl("probe_peak", torch_cpullm::bindings::probe_peak);
  m.impl("probe_round_trip", torch_cpullm::bindings::probe_round_trip);
}
