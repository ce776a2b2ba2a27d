// Contract of the row kernels: everything that happens to one row between two matrix products. Each call reads and
// writes one row only, so a row's bits cannot depend on its batch. Inputs need no alignment.
#pragma once
#include <cstddef>
#include <cstdint>

#include "dispatch/kernel.h"
#include "layout/element.h"
#include "layout/kv_page.h"
#include "layout/panel.h"

namespace torch_cpullm::kernels {

enum class Gate : int32_t { silu = 0, gelu_tanh = 1, gelu_erf = 2, relu = 3 };

// Where one row's blocks go (layout/panel.h): 256 bytes of each, `rows` rows of 256 bytes apart.
struct ActRow {
  uint8_t* values;
  int64_t rows;
  float* scale;  // int8 only: one a block, `rows` apart
  int32_t* sum;  // int8 only: `sums` a block, sums * rows apart; minus the sum of 256 / sums codes each
  int64_t sums;
};

struct RowwiseKernels {
  // out = x / sqrt(mean(x^2) + eps) * (weight + offset). Sum of squares in 16 interleaved partial sums. out may be x.
  void (*rms_norm)(layout::ConstElements x, layout::ConstElements weight, float offset, float eps, int64_t n,
                   float* out);

  // out = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias; bias is of weight's type, null data: none.
  // Both sums as above. out may be x.
  void (*layer_norm)(layout::ConstElements x, layout::ConstElements weight, layout::ConstElements bias, float eps,
                     int64_t n, float* out);

  // out = a + b, rounded once; b is of out's type.
  void (*add)(const float* a, layout::ConstElements b, int64_t n, layout::Elements out);

  // out[i] = residual[i] + (part 0[i] + part 1[i] + ...) for i in [begin, end), summed in float in that order and
  // rounded once. All parts are of `type`; residual is of out's type, null data: none. out may be any one of the parts.
  void (*sum)(const std::byte* const* part, int parts, layout::Element type, layout::ConstElements residual,
              int64_t begin, int64_t end, layout::Elements out);

  // One row of x as the operand of a product, times `multiplier` (null: 1): values of the format, or
  //   int8: per block of kActivationGroup scale = absmax / 127, codes = round(x / scale), and minus the sums of codes.
  // The last block is filled up with zeros. A block with NaN or Inf gets scale NaN.
  void (*act_f32)(layout::ConstElements x, const float* multiplier, int64_t n, const ActRow& out);
  void (*act_bf16)(layout::ConstElements x, const float* multiplier, int64_t n, const ActRow& out);
  void (*act_s8)(layout::ConstElements x, const float* multiplier, int64_t n, const ActRow& out);

  // Half-split rotation of the first `rotary` channels of one head, in place:
  //   x[i], x[i + h] = x[i] cos[i] - x[i + h] sin[i],  x[i + h] cos[i + h] + x[i] sin[i + h]     h = rotary / 2
  void (*rope)(float* x, const float* cos, const float* sin, int64_t rotary);
  // The same of pairs that stand side by side:
  //   x[i], x[i + 1] = x[i] cos[i] - x[i + 1] sin[i],  x[i + 1] cos[i + 1] + x[i] sin[i + 1]             i even
  void (*rope_pairs)(float* x, const float* cos, const float* sin, int64_t rotary);

  // out = gate(g) * up, or gate(g) where up is null. out may be g or up.
  void (*gated)(const float* g, const float* up, Gate gate, int64_t n, float* out);

  // Writes one token's key and value [channels] into slot `slot` of a page head (layout/kv_page.h).
  void (*kv_store)(const float* key, const float* value, int64_t channels, layout::Format format, uint8_t* head,
                   int64_t slot);
  // Reads them back, dequantised.
  void (*kv_fetch)(const uint8_t* head, int64_t channels, layout::Format format, int64_t slot, float* key,
                   float* value);
};

const RowwiseKernels& rowwise_kernels();

namespace scalar {
extern const RowwiseKernels rowwise;
}
namespace avx2 {
extern const RowwiseKernels rowwise;
}
namespace avx512 {
extern const RowwiseKernels rowwise;
}

}  // namespace torch_cpullm::kernels
