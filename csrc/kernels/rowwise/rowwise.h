// Contract of the row kernels: everything that happens to one row between two matrix products. Each call reads and
// writes one row only, so a row's bits cannot depend on its batch. Inputs need no alignment.
#pragma once
#include <cstdint>

#include "dispatch/kernel.h"
#include "layout/kv_page.h"

namespace torch_cpullm::kernels {

enum class Gate : int32_t { silu = 0, gelu_tanh = 1, gelu_erf = 2 };

struct RowwiseKernels {
  // out = x / sqrt(mean(x^2) + eps) * (weight + offset). Sum of squares in 16 interleaved partial sums. out may be x.
  void (*rms_norm)(const float* x, const float* weight, float offset, float eps, int64_t n, float* out);

  // Per group of kActivationGroup values: scale = absmax / 127, codes = round(x / scale), sum of codes.
  // `codes` has room for round_up(n, 64); the rest up to there is zero. A group with NaN or Inf gets scale NaN.
  void (*quantize_s8)(const float* x, int64_t n, int8_t* codes, float* scale, int32_t* sum);

  // Rounds to bf16, ties to even; room for round_up(n, 64), zero-filled.
  void (*to_bf16)(const float* x, int64_t n, uint16_t* out);

  // Half-split rotation of the first `rotary` channels of one head, in place:
  //   x[i], x[i + h] = x[i] cos[i] - x[i + h] sin[i],  x[i + h] cos[i + h] + x[i] sin[i + h]     h = rotary / 2
  void (*rope)(float* x, const float* cos, const float* sin, int64_t rotary);

  // out = gate(g) * up. out may be g or up.
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
