// The roofline probes.
#include "drivers/probe.h"

#include "bindings/check.h"
#include "bindings/ops.h"

namespace torch_cpullm::bindings {

double probe_read_bandwidth(const at::Tensor& buffer, int64_t threads, int64_t repeats) {
  check_type(buffer, at::kFloat, "buffer");
  TORCH_CHECK_VALUE(buffer.is_contiguous() && buffer.numel() >= 4096,
                    "buffer: expected at least 4096 contiguous floats, got ", buffer.sizes());
  TORCH_CHECK_VALUE(threads >= 1 && repeats >= 1, "threads, repeats: expected at least 1, got ", threads, " and ",
                    repeats);
  return drivers::measure_read(buffer.const_data_ptr<float>(), buffer.numel(), static_cast<int>(threads), repeats);
}

double probe_peak(c10::string_view instruction, int64_t threads, int64_t milliseconds) {
  TORCH_CHECK_VALUE(threads >= 1 && milliseconds >= 1, "threads, milliseconds: expected at least 1, got ", threads,
                    " and ", milliseconds);
  const double seconds = static_cast<double>(milliseconds) * 1e-3;
  const int team = static_cast<int>(threads);
  if (instruction == "f32") return drivers::measure_peak(kernels::peak_f32_kernel(), team, seconds);
  if (instruction == "bf16") return drivers::measure_peak(kernels::peak_bf16_kernel(), team, seconds);
  if (instruction == "int8") return drivers::measure_peak(kernels::peak_int8_kernel(), team, seconds);
  if (instruction == "amx bf16") return drivers::measure_peak(kernels::peak_amx_bf16_kernel(), team, seconds);
  if (instruction == "amx int8") return drivers::measure_peak(kernels::peak_amx_int8_kernel(), team, seconds);
  TORCH_CHECK_VALUE(false, "instruction: expected 'f32', 'bf16', 'int8', 'amx bf16' or 'amx int8', got '",
                    std::string(instruction), "'");
}

double probe_round_trip(int64_t iterations) {
  TORCH_CHECK_VALUE(iterations >= 1, "iterations: expected at least 1, got ", iterations);
  return drivers::measure_round_trip(iterations);
}

}  // namespace torch_cpullm::bindings
