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

// The attention part of a problem; the caller fills q and out.
inline drivers::AttentionProblem attention_problem(const KvArguments& kv, int64_t batch, int64_t tokens, int64_t heads,
                                                   const std::optional<at::Tensor>& mask, double scale,
                                                   double soft_cap) {
  TORCH_CHECK_VALUE(heads >= 1 && heads % kv.pages.heads == 0, "heads: expected a multiple of the ", kv.pages.heads,
                    " KV heads, got ", heads);
  TORCH_CHECK_VALUE(soft_cap >= 0.0, "soft_cap: expected 0 (none) or a positive cap, got ", soft_cap);
  drivers::AttentionProblem problem{};
  problem.batch = batch;
  problem.tokens = tokens;
  problem.heads = heads;
  problem.pages = kv.pages;
  problem.page_table = kv.table;
  problem.table_stride = kv.table_stride;
  problem.past = kv.past;
  problem.scale = static_cast<float>(scale);
  problem.soft_cap = static_cast<float>(soft_cap);
  problem.longest = kv.longest;
  if (!mask) return problem;
  check_type(*mask, at::kBool, "mask");
  check_dims(*mask, 4, "mask", "[B or 1, H or 1, T, S]");
  TORCH_CHECK_VALUE((mask->size(0) == batch || mask->size(0) == 1) && (mask->size(1) == heads || mask->size(1) == 1) &&
                        mask->size(2) == tokens && mask->size(3) >= kv.longest,
                    "mask: expected [", batch, " or 1, ", heads, " or 1, ", tokens, ", at least ", kv.longest,
                    "], got ", mask->sizes());
  TORCH_CHECK_VALUE(mask->stride(3) == 1 || mask->size(3) == 1, "mask: expected a contiguous last dimension");
  problem.mask = static_cast<const uint8_t*>(mask->const_data_ptr());
  problem.mask_batch_stride = mask->size(0) == 1 ? 0 : mask->stride(0);
  problem.mask_head_stride = mask->size(1) == 1 ? 0 : mask->stride(1);
  problem.mask_token_stride = mask->stride(2);
  return problem;
}

}  // namespace torch_cpullm::bindings
