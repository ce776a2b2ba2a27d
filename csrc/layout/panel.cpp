#include "layout/panel.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "runtime/parallel.h"

namespace torch_cpullm::layout {
namespace {

constexpr uint8_t kZeroCode = 128;

uint16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (std::isnan(x)) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float from_bf16(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

// Symmetric, absmax / 127: zero stays zero, and |code| <= 127 is what the AVX2 kernel's sign trick needs. A row with
// NaN or Inf gets scale NaN, so that it spoils its own output and nothing hides it.
float absmax_scale(const float* row, int64_t depth) {
  float largest = 0.0f, poison = 0.0f;
  for (int64_t k = 0; k < depth; ++k) {
    largest = std::max(largest, std::fabs(row[k]));
    poison += row[k] * 0.0f;
  }
  return largest / 127.0f + poison;
}

// Divided and not multiplied by 1 / scale, which is no finite float where the scale is denormal.
uint8_t weight_code(float x, float scale) {
  if (!(scale > 0.0f)) return kZeroCode;
  const float code = std::clamp(std::nearbyint(x / scale), -127.0f, 127.0f);
  return static_cast<uint8_t>(static_cast<int>(code) + kZeroCode);
}

void pack_panel(const float* weight, Format format, int64_t columns, int64_t depth, int64_t panel, float* scale,
                uint8_t* out) {
  const int64_t first = panel * kPanelColumns;
  const int64_t width = std::min(kPanelColumns, columns - first);
  const int64_t per_step = depth_per_step(format), bytes = element_bytes(format);
  const int64_t steps = step_count(format, depth);
  std::memset(out, format == Format::int8 ? kZeroCode : 0, static_cast<size_t>(steps * kStepBytes));
  for (int64_t n = 0; n < width; ++n) {
    const float* row = weight + (first + n) * depth;
    if (format == Format::int8) scale[first + n] = absmax_scale(row, depth);
    for (int64_t k = 0; k < depth; ++k) {
      uint8_t* element = out + (k / per_step) * kStepBytes + (n * per_step + k % per_step) * bytes;
      if (format == Format::f32) {
        std::memcpy(element, row + k, sizeof(float));
      } else if (format == Format::bf16) {
        const uint16_t bits = to_bf16(row[k]);
        std::memcpy(element, &bits, sizeof bits);
      } else {
        *element = weight_code(row[k], scale[first + n]);
      }
    }
  }
}

}  // namespace

void pack_panels(const float* weight, const float* bias, Format format, int64_t columns, int64_t depth, int threads,
                 uint8_t* out) {
  PackedHeader header{};
  header.magic = kPanelMagic;
  header.version = kPanelVersion;
  header.format = format;
  header.columns = columns;
  header.depth = depth;
  header.has_bias = bias != nullptr;
  header.activation_group = kActivationGroup;
  header.total_bytes = packed_bytes(format, columns, depth, bias != nullptr);
  const int64_t panels_at = panels_offset(format, columns, bias != nullptr);
  std::memset(out, 0, static_cast<size_t>(panels_at));
  std::memcpy(out, &header, sizeof header);
  if (bias) std::memcpy(out + bias_offset(), bias, static_cast<size_t>(columns) * sizeof(float));
  auto* scale = reinterpret_cast<float*>(out + scale_offset(columns, bias != nullptr));
  const int64_t panel_bytes = step_count(format, depth) * kStepBytes;
  runtime::parallel(threads, [&](const runtime::Team& team) {
    const runtime::Range mine = team.share(panel_count(columns));
    for (int64_t p = mine.begin; p < mine.end; ++p)
      pack_panel(weight, format, columns, depth, p, scale, out + panels_at + p * panel_bytes);
  });
}

void unpack_panels(const PackedView& packed, int threads, float* weight) {
  const int64_t per_step = depth_per_step(packed.format), bytes = element_bytes(packed.format);
  runtime::parallel(threads, [&](const runtime::Team& team) {
    const runtime::Range mine = team.share(packed.columns);
    for (int64_t n = mine.begin; n < mine.end; ++n) {
      const uint8_t* panel = packed.panels + n / kPanelColumns * packed.steps * kStepBytes;
      for (int64_t k = 0; k < packed.depth; ++k) {
        const int64_t column = (n % kPanelColumns) * per_step + k % per_step;
        const uint8_t* element = panel + (k / per_step) * kStepBytes + column * bytes;
        float value;
        if (packed.format == Format::f32) {
          std::memcpy(&value, element, sizeof value);
        } else if (packed.format == Format::bf16) {
          uint16_t bits;
          std::memcpy(&bits, element, sizeof bits);
          value = from_bf16(bits);
        } else {
          value = static_cast<float>(static_cast<int>(*element) - kZeroCode) * packed.scale[n];
        }
        weight[n * packed.depth + k] = value;
      }
    }
  });
}

const char* check_packed(const uint8_t* bytes, int64_t size) {
  if (size < static_cast<int64_t>(sizeof(PackedHeader))) return "is shorter than a header of 64 bytes";
  PackedHeader header;
  std::memcpy(&header, bytes, sizeof header);
  if (header.magic != kPanelMagic) return "does not begin with the mark of a packed weight";
  if (header.version != kPanelVersion) return "was packed in another version of the layout; pack the weight again";
  if (header.activation_group != kActivationGroup) return "was packed for another activation group; pack it again";
  if (header.format > Format::int8) return "has an unknown format";
  // 2^31 in each dimension keeps every offset below 2^63, so a hostile header cannot overflow the sizes below.
  if (header.columns < 1 || header.depth < 1 || header.columns > INT32_MAX || header.depth > INT32_MAX ||
      header.has_bias > 1)
    return "has impossible sizes in its header";
  if (header.total_bytes != packed_bytes(header.format, header.columns, header.depth, header.has_bias != 0) ||
      header.total_bytes != size)
    return "has a length that does not fit its header (truncated?)";
  return nullptr;
}

PackedView view_packed(const uint8_t* bytes) {
  PackedHeader header;
  std::memcpy(&header, bytes, sizeof header);
  const bool has_bias = header.has_bias != 0;
  return {header.format,
          header.columns,
          header.depth,
          step_count(header.format, header.depth),
          has_bias ? reinterpret_cast<const float*>(bytes + bias_offset()) : nullptr,
          header.format == Format::int8 ? reinterpret_cast<const float*>(bytes + scale_offset(header.columns, has_bias))
                                        : nullptr,
          bytes + panels_offset(header.format, header.columns, has_bias)};
}

}  // namespace torch_cpullm::layout
