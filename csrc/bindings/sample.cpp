#include "drivers/sample.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <cmath>
#include <limits>

#include "bindings/check.h"
#include "bindings/ops.h"

namespace torch_cpullm::bindings {
namespace {

// As kernels divide by it, so that 1e-60 is refused and does not become 0.
float check_divisor(double value, const char* name) {
  const auto number = static_cast<float>(value);
  TORCH_CHECK_VALUE(number > 0.0f && std::isfinite(number), name,
                    ": expected a number above 0 that float32 holds, got ", value);
  return number;
}

void check_share(double value, const char* name) {
  TORCH_CHECK_VALUE(value >= 0.0 && value <= 1.0, name, ": expected 0 to 1, got ", value);
}

void check_ids(const at::Tensor& ids, int64_t rows, int64_t vocabulary) {
  check_type(ids, at::kLong, "ids");
  check_dims(ids, 2, "ids", "[B, S]");
  check_size(ids, 0, rows, "ids", "[B, S]");
  const at::Tensor tokens = ids.contiguous();
  const int64_t* token = tokens.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < tokens.numel(); ++i)
    TORCH_CHECK_INDEX(token[i] >= 0 && token[i] < vocabulary, "ids: expected 0 to ", vocabulary - 1, ", got ",
                      token[i]);
}

void check_uniform(const at::Tensor& uniform, int64_t rows) {
  check_type(uniform, at::kDouble, "uniform");
  check_dims(uniform, 1, "uniform", "[B]");
  check_size(uniform, 0, rows, "uniform", "[B]");
  const at::Tensor numbers = uniform.contiguous();
  const double* number = numbers.const_data_ptr<double>();
  for (int64_t b = 0; b < rows; ++b)
    TORCH_CHECK_VALUE(number[b] >= 0.0 && number[b] < 1.0, "uniform: expected numbers from 0 to below 1, got ",
                      number[b], " in row ", b);
}

}  // namespace

at::Tensor sample(const at::Tensor& logits, const OptionalTensor& ids, const at::Tensor& uniform, double temperature,
                  int64_t top_k, double top_p, double min_p, double repetition_penalty) {
  check_float(logits, "logits");
  check_dims(logits, 2, "logits", "[B, V]");
  const int64_t rows = logits.size(0), vocabulary = logits.size(1);
  TORCH_CHECK_VALUE(vocabulary >= 1 && vocabulary <= std::numeric_limits<int32_t>::max() - 64,
                    "logits: expected 1 to 2^31 - 65 tokens in a row, got shape ", logits.sizes());
  TORCH_CHECK_VALUE(top_k >= 0, "top_k: expected 0 (all tokens) or more, got ", top_k);
  check_share(top_p, "top_p");
  check_share(min_p, "min_p");
  check_uniform(uniform, rows);
  if (ids) check_ids(*ids, rows, vocabulary);
  const drivers::SampleFilters filters{check_divisor(temperature, "temperature"), top_k, top_p, min_p,
                                       check_divisor(repetition_penalty, "repetition_penalty")};
  TORCH_CHECK_VALUE(ids || filters.repetition_penalty == 1.0f,
                    "ids: expected the tokens so far, [B, S], for a repetition_penalty of ", repetition_penalty,
                    ", got None");

  const at::Tensor whole_rows = logits.stride(1) == 1 ? logits : logits.contiguous(), numbers = uniform.contiguous();
  const bool penalised = ids && filters.repetition_penalty != 1.0f;
  const at::Tensor seen = penalised ? ids->contiguous() : at::Tensor();
  at::Tensor tokens = at::empty({rows}, logits.options().dtype(at::kLong));
  auto* out = tokens.mutable_data_ptr<int64_t>();
  drivers::sample({.logits = {whole_rows.const_data_ptr(), element_of(logits.scalar_type())},
                   .rows = rows,
                   .vocabulary = vocabulary,
                   .stride = whole_rows.stride(0),
                   .ids = penalised ? seen.const_data_ptr<int64_t>() : nullptr,
                   .seen = penalised ? seen.size(1) : 0,
                   .uniform = numbers.const_data_ptr<double>(),
                   .filters = filters},
                  out, at::get_num_threads());
  for (int64_t b = 0; b < rows; ++b) {
    TORCH_CHECK_VALUE(out[b] != drivers::kUnsoundRow, "logits: row ", b,
                      " holds NaN or +Inf after penalty and temperature; nothing can be drawn from it");
    TORCH_CHECK_VALUE(out[b] != drivers::kEmptyRow, "logits: row ", b,
                      " holds nothing but -Inf after penalty and temperature; every token was ruled out");
  }
  return tokens;
}

}  // namespace torch_cpullm::bindings
