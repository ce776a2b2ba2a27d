// The arguments that describe one layer of a KV pool, checked before a byte is read or written.
#pragma once
#include <algorithm>
#include <optional>

#include "bindings/check.h"
#include "drivers/attention.h"

namespace torch_cpullm::bindings {

struct KvArguments {
  layout::LayerPages pages;
  const int32_t* table;
  int64_t table_stride;
  const int32_t* past;
  int64_t longest;  // the largest past + tokens
};

inline layout::LayerPages check_pages(const at::Tensor& pages, int64_t kv_heads, int64_t channels,
                                      layout::Format format) {
  check_type(pages, at::kByte, "pages");
  check_channels(channels);
  TORCH_CHECK_VALUE(kv_heads >= 1, "kv_heads: expected at least 1, got ", kv_heads);
  check_dims(pages, 2, "pages", "[pages, layer bytes]");
  const int64_t bytes = kv_heads * layout::head_bytes(format, channels);
  TORCH_CHECK_VALUE(pages.size(1) == bytes && pages.stride(1) == 1, "pages: expected rows of ", bytes,
                    " contiguous bytes for ", kv_heads, " KV heads of ", channels, " channels, got shape ",
                    pages.sizes(), " and strides ", pages.strides());
  TORCH_CHECK_VALUE(reinterpret_cast<uintptr_t>(pages.data_ptr()) % alignof(float) == 0 && pages.stride(0) % 4 == 0 &&
                        (pages.size(0) <= 1 || pages.stride(0) >= bytes),
                    "pages: expected pages that do not overlap, at addresses divisible by ", alignof(float),
                    ", got strides ", pages.strides());
  return {static_cast<uint8_t*>(pages.data_ptr()), pages.stride(0), pages.size(0), format, kv_heads, channels};
}

inline void check_table(const int32_t* table, int64_t used, int64_t b, int64_t page_count) {
  for (int64_t i = 0; i < used; ++i)
    TORCH_CHECK_INDEX(table[i] >= 0 && table[i] < page_count, "page_table: entry ", i, " of sequence ", b, " is page ",
                      table[i], ", the pool has ", page_count);
}

inline KvArguments check_kv(const at::Tensor& pages, const at::Tensor& page_table, const at::Tensor& past,
                            int64_t batch, int64_t tokens, int64_t kv_heads, int64_t channels, layout::Format format) {
  KvArguments kv;
  kv.pages = check_pages(pages, kv_heads, channels, format);
  check_type(page_table, at::kInt, "page_table");
  check_dims(page_table, 2, "page_table", "[B, pages]");
  check_size(page_table, 0, batch, "page_table", "[B, pages]");
  TORCH_CHECK_VALUE(page_table.stride(1) == 1 || page_table.size(1) <= 1, "page_table: expected contiguous rows");
  check_type(past, at::kInt, "past");
  check_dims(past, 1, "past", "[B]");
  check_size(past, 0, batch, "past", "[B]");
  TORCH_CHECK_VALUE(past.is_contiguous(), "past: expected a contiguous tensor");
  kv.table = page_table.const_data_ptr<int32_t>();
  kv.table_stride = page_table.stride(0);
  kv.past = past.const_data_ptr<int32_t>();
  kv.longest = 0;
  for (int64_t b = 0; b < batch; ++b) {
    TORCH_CHECK_VALUE(kv.past[b] >= 0, "past: expected lengths of at least 0, got ", kv.past[b], " for sequence ", b);
    const int64_t length = kv.past[b] + tokens, used = layout::ceil_div(length, layout::kPageTokens);
    TORCH_CHECK_VALUE(used <= page_table.size(1), "page_table: sequence ", b, " needs ", used, " pages for ", length,
                      " tokens, its row has ", page_table.size(1));
    check_table(kv.table + b * kv.table_stride, used, b, kv.pages.count);
    kv.longest = std::max(kv.longest, length);
  }
  return kv;
}

// What changes a score or hides it, as the ops take it; keeps float copies alive while the op runs.
struct ScoreArguments {
  std::optional<at::Tensor> mask, tree;
  at::Tensor sinks, slopes;
  double soft_cap;
  int64_t window;

  ScoreArguments(const std::optional<at::Tensor>& mask_or_bias, const std::optional<at::Tensor>& tree_bits,
                 const std::optional<at::Tensor>& sinks_H, const std::optional<at::Tensor>& slopes_H, int64_t heads,
                 double cap, int64_t window_tokens)
      : mask(mask_or_bias),
        tree(tree_bits),
        sinks(of_heads(sinks_H, heads, "sinks")),
        slopes(of_heads(slopes_H, heads, "slopes")),
        soft_cap(cap),
        window(window_tokens) {
    TORCH_CHECK_VALUE(soft_cap >= 0.0, "soft_cap: expected 0 (none) or a positive cap, got ", soft_cap);
    TORCH_CHECK_VALUE(window >= 0, "window: expected 0 (none) or a number of tokens, got ", window);
    TORCH_CHECK_VALUE(!mask || !tree, "tree: expected no mask beside it, got both");
    TORCH_CHECK_VALUE(!tree || (!slopes.defined() && window == 0),
                      "tree: expected neither slopes nor a window beside it: both count tokens, and a tree has depths");
  }

  static at::Tensor of_heads(const std::optional<at::Tensor>& x, int64_t heads, const char* name) {
    if (!x) return {};
    check_float(*x, name);
    check_dims(*x, 1, name, "[H]");
    check_size(*x, 0, heads, name, "[H]");
    return as_floats(*x);
  }
};

inline void check_mask(const at::Tensor& mask, int64_t batch, int64_t heads, int64_t tokens, int64_t longest) {
  TORCH_CHECK_TYPE(mask.scalar_type() == at::kBool || mask.scalar_type() == at::kFloat,
                   "mask: expected bool, or float32 to be added to the scores, got ", mask.scalar_type());
  check_dims(mask, 4, "mask", "[B or 1, H or 1, T, S]");
  TORCH_CHECK_VALUE((mask.size(0) == batch || mask.size(0) == 1) && (mask.size(1) == heads || mask.size(1) == 1) &&
                        mask.size(2) == tokens && mask.size(3) >= longest,
                    "mask: expected [", batch, " or 1, ", heads, " or 1, ", tokens, ", at least ", longest, "], got ",
                    mask.sizes());
  TORCH_CHECK_VALUE(mask.stride(3) == 1 || mask.size(3) == 1, "mask: expected a contiguous last dimension");
}

// The attention part of a problem; the caller fills q and out.
inline drivers::AttentionProblem attention_problem(const KvArguments& kv, int64_t batch, int64_t tokens, int64_t heads,
                                                   const ScoreArguments& scores, double scale) {
  TORCH_CHECK_VALUE(heads >= 1 && heads % kv.pages.heads == 0, "heads: expected a multiple of the ", kv.pages.heads,
                    " KV heads, got ", heads);
  drivers::AttentionProblem problem{};
  problem.batch = batch;
  problem.tokens = tokens;
  problem.heads = heads;
  problem.pages = kv.pages;
  problem.page_table = kv.table;
  problem.table_stride = kv.table_stride;
  problem.past = kv.past;
  problem.scale = static_cast<float>(scale);
  problem.soft_cap = static_cast<float>(scores.soft_cap);
  problem.longest = kv.longest;
  problem.window = scores.window;
  if (scores.sinks.defined()) problem.sinks = scores.sinks.const_data_ptr<float>();
  if (scores.slopes.defined()) problem.slopes = scores.slopes.const_data_ptr<float>();
  if (scores.tree) {
    check_type(*scores.tree, at::kLong, "tree");
    check_dims(*scores.tree, 2, "tree", "[B, T]");
    check_size(*scores.tree, 0, batch, "tree", "[B, T]");
    check_size(*scores.tree, 1, tokens, "tree", "[B, T]");
    TORCH_CHECK_VALUE(tokens <= 64, "tree: expected at most 64 query tokens, one a bit, got ", tokens);
    TORCH_CHECK_VALUE(scores.tree->is_contiguous(), "tree: expected a contiguous tensor");
    problem.tree = scores.tree->const_data_ptr<int64_t>();
  }
  if (!scores.mask) return problem;
  const at::Tensor& mask = *scores.mask;
  check_mask(mask, batch, heads, tokens, kv.longest);
  if (mask.scalar_type() == at::kBool) {
    problem.mask = static_cast<const uint8_t*>(mask.const_data_ptr());
  } else {
    problem.bias = mask.const_data_ptr<float>();
  }
  problem.mask_batch_stride = mask.size(0) == 1 ? 0 : mask.stride(0);
  problem.mask_head_stride = mask.size(1) == 1 ? 0 : mask.stride(1);
  problem.mask_token_stride = mask.stride(2);
  return problem;
}

}  // namespace torch_cpullm::bindings
