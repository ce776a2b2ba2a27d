// Packed weights, the product with them, and their rows.
#include "drivers/linear.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include "bindings/check.h"
#include "bindings/ops.h"
#include "drivers/pack.h"
#include "drivers/slice.h"
#include "runtime/weight_memory.h"

namespace torch_cpullm::bindings {
namespace {

constexpr const char* kNames[] = {"f32", "bf16", "int8", "int4"};

layout::WeightFormat parse_weight_format(c10::string_view codes, c10::string_view activation, int64_t group,
                                         bool asymmetric) {
  const auto index_of = [](c10::string_view word, int count) {
    for (int i = 0; i < count; ++i)
      if (word == kNames[i]) return i;
    return -1;
  };
  const int code = index_of(codes, 4), act = index_of(activation, 3);
  TORCH_CHECK_VALUE(code >= 0, "codes: expected 'f32', 'bf16', 'int8' or 'int4', got '", std::string(codes), "'");
  TORCH_CHECK_VALUE(act >= 0, "activation: expected 'f32', 'bf16' or 'int8', got '", std::string(activation), "'");
  const bool known_group = group == 0 || group == 32 || group == 64 || group == 128;
  TORCH_CHECK_VALUE(known_group, "group: expected 0, 32, 64 or 128, got ", group);
  const layout::WeightFormat format{static_cast<layout::Codes>(code), static_cast<layout::Activation>(act), asymmetric,
                                    static_cast<int32_t>(group)};
  const char* fault = layout::check_format(format);
  TORCH_CHECK_VALUE(fault == nullptr, "codes, activation, group, asymmetric: this combination ", fault ? fault : "");
  return format;
}

at::Tensor check_vector(const OptionalTensor& x, int64_t size, const char* name, const char* shape) {
  if (!x) return {};
  check_cpu(*x, name);
  TORCH_CHECK_TYPE(at::isFloatingType(x->scalar_type()), name, ": expected a floating dtype, got ", x->scalar_type());
  check_dims(*x, 1, name, shape);
  check_size(*x, 0, size, name, shape);
  return as_floats(x->detach());
}

at::Tensor check_grid(const OptionalTensor& x, int64_t columns, int64_t groups, const char* name) {
  if (!x) return {};
  check_cpu(*x, name);
  TORCH_CHECK_TYPE(at::isFloatingType(x->scalar_type()), name, ": expected a floating dtype, got ", x->scalar_type());
  check_dims(*x, 2, name, "[N, groups]");
  check_size(*x, 0, columns, name, "[N, groups]");
  check_size(*x, 1, groups, name, "[N, groups]");
  return as_floats(x->detach());
}

const float* data_or_null(const at::Tensor& x) { return x.defined() ? x.const_data_ptr<float>() : nullptr; }

// Small ones where torch puts them: alone in a chunk they would take a whole huge page.
at::Tensor empty_packed(int64_t bytes, bool lasting = true) {
  constexpr int64_t kOwnFrom = int64_t{1} << 20;
  const std::shared_ptr<void> memory =
      bytes < kOwnFrom ? nullptr : runtime::weight_memory(static_cast<size_t>(bytes), lasting);
  const at::TensorOptions options = at::TensorOptions().dtype(at::kByte);
  // torch's own allocator says best that there is no memory.
  if (!memory) return at::empty({bytes}, options);
  return at::from_blob(memory.get(), {bytes}, [memory](void*) {}, options);
}

// The three types that packing reads where they lie; anything else, or strided, is made float32 first.
at::Tensor readable(const at::Tensor& weight) {
  const at::ScalarType type = weight.scalar_type();
  if (type == at::kBFloat16 || type == at::kHalf) return weight.contiguous();
  return as_floats(weight);
}

}  // namespace

at::Tensor pack(const at::Tensor& weight, const OptionalTensor& bias, c10::string_view codes,
                c10::string_view activation, int64_t group, bool asymmetric, const OptionalTensor& multiplier,
                const OptionalTensor& scale, const OptionalTensor& zero, bool lasting) {
  const layout::WeightFormat format = parse_weight_format(codes, activation, group, asymmetric);
  check_cpu(weight, "weight");
  TORCH_CHECK_TYPE(at::isFloatingType(weight.scalar_type()), "weight: expected a floating dtype, got ",
                   weight.scalar_type());
  check_dims(weight, 2, "weight", "[N, K]");
  TORCH_CHECK_VALUE(weight.numel() > 0, "weight: expected at least one row and column, got ", weight.sizes());
  TORCH_CHECK_VALUE(weight.size(0) <= INT32_MAX && weight.size(1) <= INT32_MAX,
                    "weight: expected fewer than 2^31 rows and columns, got ", weight.sizes());
  const int64_t columns = weight.size(0), depth = weight.size(1);
  const int64_t groups = group ? layout::ceil_div(depth, group) : 1;
  const at::Tensor values = readable(weight.detach());
  const at::Tensor offsets = check_vector(bias, columns, "bias", "[N]");
  const at::Tensor factors = check_vector(multiplier, depth, "multiplier", "[K]");
  if (factors.defined()) {
    const float* factor = factors.const_data_ptr<float>();
    for (int64_t k = 0; k < depth; ++k)
      TORCH_CHECK_VALUE(factor[k] >= 0x1p-60f && factor[k] <= 0x1p60f,
                        "multiplier: expected factors from 2^-60 to 2^60, got ", factor[k], " for input ", k);
  }
  TORCH_CHECK_VALUE(!scale || layout::is_quantized(format.codes), "scale: codes '", std::string(codes), "' take none");
  TORCH_CHECK_VALUE(!zero || (format.asymmetric && scale), "zero: expected with asymmetric codes and a scale only");
  const at::Tensor scales = check_grid(scale, columns, groups, "scale"),
                   zeros = check_grid(zero, columns, groups, "zero");
  TORCH_CHECK_VALUE(!scales.defined() || !format.asymmetric || zeros.defined(),
                    "zero: expected beside scale for asymmetric codes");
  if (zeros.defined()) {
    const float* entry = zeros.const_data_ptr<float>();
    for (int64_t i = 0; i < zeros.numel(); ++i)
      TORCH_CHECK_VALUE(
          entry[i] >= 0.0f && entry[i] <= 15.0f && entry[i] == static_cast<float>(static_cast<int>(entry[i])),
          "zero: expected whole numbers from 0 to 15, got ", entry[i]);
  }
  const int64_t bytes = layout::packed_places(format, columns, depth, bias.has_value(), multiplier.has_value()).total;
  at::Tensor packed = empty_packed(bytes, lasting);
  drivers::pack_weight({{values.const_data_ptr(), element_of(values.scalar_type())},
                        columns,
                        depth,
                        data_or_null(offsets),
                        data_or_null(factors),
                        data_or_null(scales),
                        data_or_null(zeros)},
                       format, at::get_num_threads(), packed.mutable_data_ptr<uint8_t>());
  return packed;
}

at::Tensor unpack(const at::Tensor& packed) {
  const layout::PackedView view = check_packed_weight(packed, "packed");
  at::Tensor weight = at::empty({view.columns, view.depth}, packed.options().dtype(at::kFloat));
  drivers::unpack_weight(view, at::get_num_threads(), weight.mutable_data_ptr<float>());
  return weight;
}

at::Tensor copy_packed(const at::Tensor& packed) {
  check_cpu(packed, "packed");
  TORCH_CHECK_TYPE(packed.scalar_type() == at::kByte, "packed: expected uint8, got ", packed.scalar_type());
  check_dims(packed, 1, "packed", "[bytes]");
  at::Tensor copy = empty_packed(packed.numel());
  copy.copy_(packed);
  check_packed_weight(copy, "packed");
  return copy;
}

at::Tensor slice_packed(const at::Tensor& packed, at::IntArrayRef rows, int64_t first, int64_t stop, bool bias) {
  const layout::PackedView whole = check_packed_weight(packed, "packed");
  TORCH_CHECK_VALUE(!rows.empty() && rows.size() % 2 == 0, "rows: expected pairs of first and stop, got ", rows);
  drivers::PackedPart part{{}, {first, stop}, bias};
  for (size_t i = 0; i < rows.size(); i += 2) {
    TORCH_CHECK_VALUE(0 <= rows[i] && rows[i] < rows[i + 1] && rows[i + 1] <= whole.columns,
                      "rows: expected ranges inside 0 to ", whole.columns, ", none of them empty, got ", rows);
    part.rows.push_back({rows[i], rows[i + 1]});
  }
  TORCH_CHECK_VALUE(part.columns() <= INT32_MAX, "rows: expected fewer than 2^31, got ", part.columns());
  const int64_t unit = drivers::cut_unit(whole.format);
  TORCH_CHECK_VALUE(0 <= first && first < stop && stop <= whole.depth, "first, stop: expected a range inside 0 to ",
                    whole.depth, ", got ", first, " and ", stop);
  TORCH_CHECK_VALUE(first % unit == 0 && (stop % unit == 0 || stop == whole.depth),
                    "first, stop: expected multiples of ", unit, ", between which this format keeps its scales, got ",
                    first, " and ", stop, "; cut there, or pack the weight in another format");
  at::Tensor out = empty_packed(drivers::part_places(whole, part).total);
  drivers::slice_packed(whole, part, at::get_num_threads(), out.mutable_data_ptr<uint8_t>());
  return out;
}

std::vector<int64_t> packed_info(const at::Tensor& packed) {
  const layout::PackedView view = check_packed_weight(packed, "packed");
  return {view.columns,
          view.depth,
          static_cast<int64_t>(view.format.codes),
          static_cast<int64_t>(view.format.activation),
          view.format.group,
          view.format.asymmetric,
          view.bias != nullptr,
          view.multiplier != nullptr,
          layout::kPackedVersion};
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& packed) {
  const layout::PackedView view = check_packed_weight(packed, "packed");
  check_float(x, "x");
  TORCH_CHECK_VALUE(x.dim() >= 1 && x.size(-1) == view.depth, "x: expected the last dimension to be ", view.depth,
                    " (the packed weight's inputs), got shape ", x.sizes());
  const at::Tensor rows = x.contiguous();
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = view.columns;
  at::Tensor y = at::empty(shape, rows.options());
  const layout::Element element = element_of(x.scalar_type());
  if (x.numel() > 0)
    drivers::run_linear(view, {rows.const_data_ptr(), element}, rows.numel() / view.depth,
                        {y.mutable_data_ptr(), element}, at::get_num_threads());
  return y;
}

at::Tensor embed(const at::Tensor& ids, const at::Tensor& packed, at::ScalarType dtype) {
  const layout::PackedView view = check_packed_weight(packed, "packed");
  check_cpu(ids, "ids");
  TORCH_CHECK_TYPE(ids.scalar_type() == at::kLong || ids.scalar_type() == at::kInt,
                   "ids: expected int64 or int32, got ", ids.scalar_type());
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf,
                   "dtype: expected float32, bfloat16 or float16, got ", dtype);
  const at::Tensor tokens = ids.to(at::kLong).contiguous();
  const int64_t* token = tokens.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < tokens.numel(); ++i)
    TORCH_CHECK_INDEX(token[i] >= 0 && token[i] < view.columns, "ids: expected 0 to ", view.columns - 1, ", got ",
                      token[i]);
  std::vector<int64_t> shape = ids.sizes().vec();
  shape.push_back(view.depth);
  at::Tensor rows = at::empty(shape, packed.options().dtype(at::kFloat));
  float* out = rows.mutable_data_ptr<float>();
  runtime::parallel(at::get_num_threads(), [&](const runtime::Team& team) {
    const runtime::Range mine = team.share(tokens.numel());
    for (int64_t i = mine.begin; i < mine.end; ++i) layout::unpack_row(view, token[i], out + i * view.depth);
  });
  return rows.to(dtype);
}

}  // namespace torch_cpullm::bindings
