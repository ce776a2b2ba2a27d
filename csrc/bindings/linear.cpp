// Packed weights and the product with them.
#include "drivers/linear.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include "bindings/check.h"
#include "bindings/ops.h"

namespace torch_cpullm::bindings {

at::Tensor pack(const at::Tensor& weight, const OptionalTensor& bias, c10::string_view format_name) {
  const layout::Format format = parse_format(format_name);
  check_cpu(weight, "weight");
  TORCH_CHECK_TYPE(at::isFloatingType(weight.scalar_type()), "weight: expected a floating dtype, got ",
                   weight.scalar_type());
  check_dims(weight, 2, "weight", "[N, K]");
  TORCH_CHECK_VALUE(weight.numel() > 0, "weight: expected at least one row and column, got ", weight.sizes());
  TORCH_CHECK_VALUE(weight.size(0) <= INT32_MAX && weight.size(1) <= INT32_MAX,
                    "weight: expected fewer than 2^31 rows and columns, got ", weight.sizes());
  const at::Tensor values = as_floats(weight.detach());
  at::Tensor offsets;
  if (bias) {
    check_cpu(*bias, "bias");
    TORCH_CHECK_TYPE(at::isFloatingType(bias->scalar_type()), "bias: expected a floating dtype, got ",
                     bias->scalar_type());
    check_dims(*bias, 1, "bias", "[N]");
    check_size(*bias, 0, weight.size(0), "bias", "[N]");
    offsets = as_floats(bias->detach());
  }
  const int64_t bytes = layout::packed_bytes(format, weight.size(0), weight.size(1), bias.has_value());
  at::Tensor packed = at::empty({bytes}, weight.options().dtype(at::kByte).requires_grad(false));
  layout::pack_panels(values.const_data_ptr<float>(), bias ? offsets.const_data_ptr<float>() : nullptr, format,
                      weight.size(0), weight.size(1), at::get_num_threads(), packed.mutable_data_ptr<uint8_t>());
  return packed;
}

at::Tensor unpack(const at::Tensor& packed) {
  const layout::PackedView view = check_packed_weight(packed, "packed");
  at::Tensor weight = at::empty({view.columns, view.depth}, packed.options().dtype(at::kFloat));
  layout::unpack_panels(view, at::get_num_threads(), weight.mutable_data_ptr<float>());
  return weight;
}

std::vector<int64_t> packed_info(const at::Tensor& packed) {
  const layout::PackedView view = check_packed_weight(packed, "packed");
  return {view.columns, view.depth, static_cast<int64_t>(view.format), view.bias != nullptr, layout::kPanelVersion};
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& packed) {
  const layout::PackedView view = check_packed_weight(packed, "packed");
  check_float(x, "x");
  TORCH_CHECK_VALUE(x.dim() >= 1 && x.size(-1) == view.depth, "x: expected the last dimension to be ", view.depth,
                    " (the packed weight's inputs), got shape ", x.sizes());
  const at::Tensor rows = as_floats(x);
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = view.columns;
  at::Tensor y = at::empty(shape, rows.options());
  if (x.numel() > 0)
    drivers::run_linear(view, rows.const_data_ptr<float>(), rows.numel() / view.depth, y.mutable_data_ptr<float>(),
                        at::get_num_threads());
  return y.to(x.scalar_type());
}

}  // namespace torch_cpullm::bindings
