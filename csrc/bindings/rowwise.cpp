// The row operations one by one: what a module calls where only a part of a layer matches.
#include "kernels/rowwise/rowwise.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>

#include "bindings/block_arguments.h"
#include "bindings/check.h"
#include "bindings/ops.h"
#include "runtime/parallel.h"

namespace torch_cpullm::bindings {
namespace {

template <class Body>
void for_rows(int64_t rows, const Body& body) {
  runtime::parallel(at::get_num_threads(), [&](const runtime::Team& team) {
    const runtime::Range mine = team.share(rows);
    for (int64_t row = mine.begin; row < mine.end; ++row) body(row);
  });
}

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, double offset) {
  check_float(x, "x");
  check_float(weight, "weight");
  check_dims(weight, 1, "weight", "[D]");
  TORCH_CHECK_VALUE(x.dim() >= 1 && x.size(-1) == weight.size(0), "x: expected the last dimension to be ",
                    weight.size(0), " (the weight's length), got shape ", x.sizes());
  const at::Tensor rows = x.contiguous(), gains = weight.contiguous();
  at::Tensor out = at::empty_like(rows, rows.options().dtype(at::kFloat));
  const int64_t n = weight.size(0);
  if (x.numel() == 0) return out.to(x.scalar_type());
  const auto& kernels = kernels::rowwise_kernels();
  const layout::ConstElements in = elements_of(rows), gain = elements_of(gains);
  float* result = out.mutable_data_ptr<float>();
  for_rows(rows.numel() / n, [&](int64_t row) {
    kernels.rms_norm(in.from(row * n), gain, static_cast<float>(offset), static_cast<float>(eps), n, result + row * n);
  });
  return out.to(x.scalar_type());
}

at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias, double eps) {
  check_float(x, "x");
  check_float(weight, "weight");
  check_dims(weight, 1, "weight", "[D]");
  TORCH_CHECK_VALUE(x.dim() >= 1 && x.size(-1) == weight.size(0), "x: expected the last dimension to be ",
                    weight.size(0), " (the weight's length), got shape ", x.sizes());
  if (bias) {
    check_type(*bias, weight.scalar_type(), "bias");
    TORCH_CHECK_VALUE(bias->sizes() == weight.sizes(), "bias: expected the weight's shape ", weight.sizes(), ", got ",
                      bias->sizes());
  }
  const at::Tensor rows = x.contiguous(), gains = weight.contiguous(), shifts = bias ? bias->contiguous() : gains;
  at::Tensor out = at::empty_like(rows, rows.options().dtype(at::kFloat));
  const int64_t n = weight.size(0);
  if (x.numel() == 0) return out.to(x.scalar_type());
  const auto& kernels = kernels::rowwise_kernels();
  const layout::ConstElements in = elements_of(rows), gain = elements_of(gains);
  const layout::ConstElements shift{bias ? shifts.const_data_ptr() : nullptr, gain.type};
  float* result = out.mutable_data_ptr<float>();
  for_rows(rows.numel() / n, [&](int64_t row) {
    kernels.layer_norm(in.from(row * n), gain, shift, static_cast<float>(eps), n, result + row * n);
  });
  return out.to(x.scalar_type());
}

at::Tensor rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool pairs) {
  check_float(x, "x");
  check_dims(x, 4, "x", "[B, T, H, C]");
  const int64_t batch = x.size(0), tokens = x.size(1), heads = x.size(2), channels = x.size(3);
  const RopeTables tables = check_rope(cos, sin, batch, tokens, channels);
  at::Tensor out = as_floats(x).clone();
  const auto turn = pairs ? kernels::rowwise_kernels().rope_pairs : kernels::rowwise_kernels().rope;
  float* result = out.mutable_data_ptr<float>();
  for_rows(batch * tokens, [&](int64_t row) {
    const int64_t at = row / tokens * tables.batch_stride + row % tokens * tables.rotary;
    for (int64_t head = 0; head < heads; ++head)
      turn(result + (row * heads + head) * channels, tables.cos.const_data_ptr<float>() + at,
           tables.sin.const_data_ptr<float>() + at, tables.rotary);
  });
  return out.to(x.scalar_type());
}

at::Tensor gated(const at::Tensor& gate, const OptionalTensor& up, c10::string_view activation) {
  check_float(gate, "gate");
  if (up) {
    check_float(*up, "up");
    TORCH_CHECK_VALUE(gate.sizes() == up->sizes(), "up: expected gate's shape ", gate.sizes(), ", got ", up->sizes());
  }
  const kernels::Gate kind = parse_activation(activation);
  const at::Tensor opened = as_floats(gate), values = up ? as_floats(*up) : opened;
  at::Tensor out = at::empty_like(opened);
  if (gate.numel() == 0) return out.to(gate.scalar_type());
  const int64_t n = gate.dim() ? gate.size(-1) : 1;
  const auto& kernels = kernels::rowwise_kernels();
  const float *g = opened.const_data_ptr<float>(), *u = up ? values.const_data_ptr<float>() : nullptr;
  float* result = out.mutable_data_ptr<float>();
  for_rows(gate.numel() / n,
           [&](int64_t row) { kernels.gated(g + row * n, u ? u + row * n : nullptr, kind, n, result + row * n); });
  return out.to(gate.scalar_type());
}

at::Tensor sum_parts(at::TensorList parts, const OptionalTensor& residual) {
  TORCH_CHECK_VALUE(!parts.empty(), "parts: expected at least one tensor, got none");
  std::vector<at::Tensor> held;  // keeps what addresses point into
  std::vector<const std::byte*> addresses;
  for (const at::Tensor& part : parts) {
    check_float(part, "parts");
    check_type(part, parts[0].scalar_type(), "parts");
    TORCH_CHECK_VALUE(part.sizes() == parts[0].sizes(), "parts: expected one shape, ", parts[0].sizes(), ", got ",
                      part.sizes());
    addresses.push_back(static_cast<const std::byte*>(held.emplace_back(part.contiguous()).const_data_ptr()));
  }
  if (residual) {
    check_float(*residual, "residual");
    TORCH_CHECK_VALUE(residual->sizes() == parts[0].sizes(), "residual: expected the parts' shape ", parts[0].sizes(),
                      ", got ", residual->sizes());
  }
  const at::Tensor rest = residual ? residual->contiguous() : held[0];
  at::Tensor out = at::empty_like(rest);
  const layout::ConstElements added{residual ? rest.const_data_ptr() : nullptr, element_of(rest.scalar_type())};
  const layout::Elements result = mutable_elements_of(out);
  const auto sum = kernels::rowwise_kernels().sum;
  runtime::parallel(at::get_num_threads(), [&](const runtime::Team& team) {
    const runtime::Range mine = team.share(out.numel());
    sum(addresses.data(), static_cast<int>(addresses.size()), element_of(held[0].scalar_type()), added, mine.begin,
        mine.end, result);
  });
  return out;
}

}  // namespace torch_cpullm::bindings
