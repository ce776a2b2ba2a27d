// What library.cpp registers; each family is defined in the file of its name.
#pragma once
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <string>
#include <tuple>
#include <vector>

#include "bindings/check.h"

namespace torch_cpullm::bindings {

// linear.cpp
at::Tensor pack(const at::Tensor& weight, const OptionalTensor& bias, c10::string_view codes,
                c10::string_view activation, int64_t group, bool asymmetric, const OptionalTensor& multiplier,
                const OptionalTensor& scale, const OptionalTensor& zero, bool lasting);
at::Tensor unpack(const at::Tensor& packed);
at::Tensor copy_packed(const at::Tensor& packed);
at::Tensor slice_packed(const at::Tensor& packed, at::IntArrayRef rows, int64_t first, int64_t stop, bool bias);
std::vector<int64_t> packed_info(const at::Tensor& packed);

at::Tensor linear(const at::Tensor& x, const at::Tensor& packed);
at::Tensor embed(const at::Tensor& ids, const at::Tensor& packed, at::ScalarType dtype);

// rowwise.cpp
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, double offset);
at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias, double eps);
at::Tensor rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool pairs);
at::Tensor gated(const at::Tensor& gate, const OptionalTensor& up, c10::string_view activation);
at::Tensor sum_parts(at::TensorList parts, const OptionalTensor& residual);

// sample.cpp
at::Tensor sample(const at::Tensor& logits, const OptionalTensor& ids, const at::Tensor& uniform, double temperature,
                  int64_t top_k, double top_p, double min_p, double repetition_penalty);

// kv.cpp
int64_t kv_layer_bytes(int64_t heads, int64_t channels, c10::string_view format);
int64_t kv_page_tokens();
void set_slim_tokens(int64_t tokens);
void kv_append(at::Tensor pages, const at::Tensor& page_table, const at::Tensor& past, const at::Tensor& key,
               const at::Tensor& value, c10::string_view format);
std::tuple<at::Tensor, at::Tensor> kv_gather(const at::Tensor& pages, const at::Tensor& page_table, int64_t length,
                                             int64_t kv_heads, int64_t channels, c10::string_view format);
at::Tensor paged_attention(const at::Tensor& query, const at::Tensor& pages, const at::Tensor& page_table,
                           const at::Tensor& past, const OptionalTensor& mask, const OptionalTensor& tree,
                           const OptionalTensor& sinks, const OptionalTensor& slopes, int64_t kv_heads,
                           c10::string_view format, double scale, double soft_cap, int64_t window);
at::Tensor slim_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const OptionalTensor& mask, const OptionalTensor& sinks, const OptionalTensor& slopes,
                          double scale, double soft_cap, int64_t window);

// blocks.cpp
at::Tensor attention_block(const at::Tensor& hidden, at::TensorList qkv, const at::Tensor& output,
                           const OptionalTensor& input_norm, const OptionalTensor& input_norm_bias,
                           const OptionalTensor& query_norm, const OptionalTensor& key_norm,
                           const OptionalTensor& output_norm, const at::Tensor& cos, const at::Tensor& sin,
                           at::Tensor pages, const at::Tensor& page_table, const at::Tensor& past,
                           const OptionalTensor& mask, int64_t heads, int64_t kv_heads, c10::string_view format,
                           double eps, double norm_offset, bool centred, double scale, double soft_cap,
                           bool qkv_in_groups, bool rope_pairs, int64_t group);
at::Tensor mlp_block(const at::Tensor& hidden, at::TensorList gate_up, const at::Tensor& down,
                     const OptionalTensor& input_norm, const OptionalTensor& input_norm_bias,
                     const OptionalTensor& output_norm, c10::string_view activation, double eps, double norm_offset,
                     bool centred, int64_t group);

// layers.cpp
at::Tensor decoder_layers(const at::Tensor& hidden, at::TensorList qkv, at::TensorList output,
                          at::TensorList attention_norm, at::TensorList attention_norm_bias, at::TensorList query_norm,
                          at::TensorList key_norm, at::TensorList attention_output_norm, at::TensorList gate_up,
                          at::TensorList down, at::TensorList mlp_norm, at::TensorList mlp_norm_bias,
                          at::TensorList mlp_output_norm, const at::Tensor& cos, const at::Tensor& sin,
                          at::IntArrayRef unrotated, at::TensorList pages, const at::Tensor& page_table,
                          const at::Tensor& past, const OptionalTensor& mask, int64_t heads, int64_t kv_heads,
                          c10::string_view format, c10::string_view activation, double eps, double norm_offset,
                          bool centred, double scale, double soft_cap, bool qkv_in_groups, bool rope_pairs,
                          bool parallel, int64_t attention_group, int64_t mlp_group);

// probe.cpp
double probe_read_bandwidth(const at::Tensor& buffer, int64_t threads, int64_t repeats);
double probe_peak(c10::string_view instruction, int64_t threads, int64_t milliseconds);
double probe_round_trip(int64_t iterations);

// comm.cpp
void all_reduce_(at::Tensor x, int64_t number);
void broadcast_(at::Tensor x, int64_t root, int64_t number);
at::Tensor all_gather(const at::Tensor& x, int64_t number);
void barrier(int64_t number, std::optional<double> timeout_s);
int64_t route_groups(at::IntArrayRef groups, at::IntArrayRef limits);
void close_group(int64_t number);
std::tuple<std::string, int64_t, int64_t, int64_t> group_info(int64_t number);
std::tuple<int64_t, int64_t, int64_t, int64_t> shm_create(int64_t size, int64_t part_bytes, double timeout_s);
int64_t shm_open(int64_t pid, int64_t descriptor, int64_t token, int64_t rank, double timeout_s);

// comm_open.cpp
at::Tensor ccl_start(const std::string& library);
int64_t open_ccl(const std::string& library, const at::Tensor& address, int64_t rank, at::IntArrayRef pids,
                 double timeout_s, bool crowded);
int64_t open_gloo(const std::string& name, at::IntArrayRef pids, double timeout_s, bool crowded);

// introspect.cpp
std::string isa_level();
int64_t scratch_bytes();
std::string isa_fault();
std::string cpu_features();
std::string kernel_report();

}  // namespace torch_cpullm::bindings
