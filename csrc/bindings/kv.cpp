// The KV pool: appending, reading back, and attention over it.
#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>

#include "bindings/kv_arguments.h"
#include "bindings/ops.h"
#include "kernels/rowwise/rowwise.h"

namespace torch_cpullm::bindings {

int64_t kv_layer_bytes(int64_t kv_heads, int64_t channels, c10::string_view format) {
  check_channels(channels);
  TORCH_CHECK_VALUE(kv_heads >= 1, "kv_heads: expected at least 1, got ", kv_heads);
  return kv_heads * layout::head_bytes(parse_format(format), channels);
}

int64_t kv_page_tokens() { return layout::kPageTokens; }

void kv_append(at::Tensor pages, const at::Tensor& page_table, const at::Tensor& past, const at::Tensor& key,
               const at::Tensor& value, c10::string_view format) {
  check_float(key, "key");
  check_float(value, "value");
  check_dims(key, 4, "key", "[B, T, G, C]");
  TORCH_CHECK_VALUE(key.sizes() == value.sizes(), "value: expected key's shape ", key.sizes(), ", got ", value.sizes());
  const int64_t batch = key.size(0), tokens = key.size(1), heads = key.size(2), channels = key.size(3);
  const KvArguments kv = check_kv(pages, page_table, past, batch, tokens, heads, channels, parse_format(format));
  const at::Tensor keys = as_floats(key), values = as_floats(value);
  const auto& kernels = kernels::rowwise_kernels();
  const float *k = keys.const_data_ptr<float>(), *v = values.const_data_ptr<float>();
  runtime::parallel(at::get_num_threads(), [&](const runtime::Team& team) {
    const runtime::Range mine = team.share(batch * tokens);
    for (int64_t row = mine.begin; row < mine.end; ++row) {
      const int64_t b = row / tokens, position = kv.past[b] + row % tokens;
      const int32_t page = kv.table[b * kv.table_stride + position / layout::kPageTokens];
      for (int64_t g = 0; g < heads; ++g)
        kernels.kv_store(k + (row * heads + g) * channels, v + (row * heads + g) * channels, channels, kv.pages.format,
                         kv.pages.head(page, g), position % layout::kPageTokens);
      if (row % tokens == tokens - 1) kv.pages.close(page, position, kv.past[b]);
    }
  });
}

std::tuple<at::Tensor, at::Tensor> kv_gather(const at::Tensor& pages, const at::Tensor& page_table, int64_t length,
                                             int64_t kv_heads, int64_t channels, c10::string_view format) {
  const layout::LayerPages layer = check_pages(pages, kv_heads, channels, parse_format(format));
  check_type(page_table, at::kInt, "page_table");
  check_dims(page_table, 2, "page_table", "[B, pages]");
  TORCH_CHECK_VALUE(page_table.is_contiguous(), "page_table: expected a contiguous tensor");
  const int64_t batch = page_table.size(0), used = layout::ceil_div(length, layout::kPageTokens);
  TORCH_CHECK_VALUE(length >= 0 && used <= page_table.size(1), "length: expected 0 to ",
                    page_table.size(1) * layout::kPageTokens, " tokens, got ", length);
  const int32_t* table = page_table.const_data_ptr<int32_t>();
  for (int64_t b = 0; b < batch; ++b) check_table(table + b * page_table.size(1), used, b, layer.count);
  at::Tensor key = at::empty({batch, kv_heads, length, channels}, pages.options().dtype(at::kFloat));
  at::Tensor value = at::empty_like(key);
  const auto& kernels = kernels::rowwise_kernels();
  float *k = key.mutable_data_ptr<float>(), *v = value.mutable_data_ptr<float>();
  runtime::parallel(at::get_num_threads(), [&](const runtime::Team& team) {
    const runtime::Range mine = team.share(batch * kv_heads);
    for (int64_t pair = mine.begin; pair < mine.end; ++pair) {
      const int32_t* row = table + pair / kv_heads * page_table.size(1);
      for (int64_t t = 0; t < length; ++t)
        kernels.kv_fetch(layer.head(row[t / layout::kPageTokens], pair % kv_heads), channels, layer.format,
                         t % layout::kPageTokens, k + (pair * length + t) * channels,
                         v + (pair * length + t) * channels);
    }
  });
  return {key, value};
}

void set_slim_tokens(int64_t tokens) {
  TORCH_CHECK_VALUE(tokens >= 0, "tokens: expected 0 (never) or more, got ", tokens);
  drivers::set_slim_tokens(tokens);
}

at::Tensor paged_attention(const at::Tensor& query, const at::Tensor& pages, const at::Tensor& page_table,
                           const at::Tensor& past, const OptionalTensor& mask, const OptionalTensor& tree,
                           const OptionalTensor& sinks, const OptionalTensor& slopes, int64_t kv_heads,
                           c10::string_view format, double scale, double soft_cap, int64_t window) {
  check_float(query, "query");
  check_dims(query, 4, "query", "[B, T, H, C]");
  const int64_t batch = query.size(0), tokens = query.size(1), heads = query.size(2), channels = query.size(3);
  const KvArguments kv = check_kv(pages, page_table, past, batch, tokens, kv_heads, channels, parse_format(format));
  const ScoreArguments scores(mask, tree, sinks, slopes, heads, soft_cap, window);
  drivers::AttentionProblem problem = attention_problem(kv, batch, tokens, heads, scores, scale);
  const at::Tensor q = query.contiguous();
  at::Tensor out = at::empty_like(q);
  if (query.numel() == 0) return out;
  const layout::Element element = element_of(query.scalar_type());
  problem.q = {q.const_data_ptr(), element};
  problem.out = {out.mutable_data_ptr(), element};
  problem.q_stride = problem.out_stride = heads * channels;
  drivers::Attention attention(problem, at::get_num_threads());
  runtime::with_scratch(
      [&](runtime::Carver& carver) { attention.plan(carver); },
      [&] { runtime::parallel(at::get_num_threads(), [&](const runtime::Team& team) { attention.run(team); }); });
  return out;
}

at::Tensor slim_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const OptionalTensor& mask, const OptionalTensor& sinks, const OptionalTensor& slopes,
                          double scale, double soft_cap, int64_t window) {
  check_float(query, "query");
  check_float(key, "key");
  check_dims(query, 4, "query", "[B, T, H, C]");
  check_dims(key, 4, "key", "[B, S, G, C]");
  check_size(key, 0, query.size(0), "key", "[B, S, G, C]");
  check_size(key, 3, query.size(3), "key", "[B, S, G, C]");
  const int64_t batch = key.size(0), length = key.size(1), kv_heads = key.size(2), tokens = query.size(1);
  TORCH_CHECK_VALUE(length >= tokens, "key: expected at least as many tokens as the query's ", tokens, ", got ",
                    length);
  const int64_t each = layout::ceil_div(length, layout::kPageTokens);
  const at::TensorOptions ints = key.options().dtype(at::kInt).requires_grad(false);
  const c10::string_view format = key.scalar_type() == at::kBFloat16 ? "bf16" : "f32";
  at::Tensor pages = at::empty({batch * each, kv_layer_bytes(kv_heads, key.size(3), format)}, ints.dtype(at::kByte));
  const at::Tensor table = at::arange(batch * each, ints).view({batch, each});
  kv_append(pages, table, at::full({batch}, 0, ints), key, value, format);
  return paged_attention(query, pages, table, at::full({batch}, length - tokens, ints), mask, std::nullopt, sinks,
                         slopes, kv_heads, format, scale, soft_cap, window);
}

}  // namespace torch_cpullm::bindings
