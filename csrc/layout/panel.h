// A packed weight: one block of bytes that describes itself, holding weight[N][K], its scales and its bias.
//
//   byte 0      64            64 + pad64(4N)         + pad64(4N)
//   | header 64 | bias f32[N]? | scale f32[Npad]?     | panel 0 | panel 1 | ... panel ceil(N/64)-1 |
//                 has_bias       int8 only
//
// A panel is 64 output columns; a step is 256 bytes, whatever the format, so that drivers count steps only:
//
//   format   k per step   bytes of step s, column n of the panel
//   f32          1        [n]    = weight[n][s]
//   bf16         2        [n][2] = weight[n][2s], weight[n][2s+1]
//   int8         4        [n][4] = code[n][4s .. 4s+3] + 128        (unsigned: the first operand of vpdpbusd)
//
//   panel p, step s  ->  panels + (p * steps + s) * 256              steps = ceil(K / k_per_step)
//
// 64 columns = 4 zmm x 6 rows = 24 accumulators. 256 contiguous bytes a step make a panel one sequential stream, which
// is what a hardware prefetcher follows best. Columns beyond N and k beyond K are padded with the code of zero; the
// activations are padded with zeros as well, so padding never reaches a result.
#pragma once
#include <cstdint>

namespace torch_cpullm::layout {

enum class Format : uint32_t { f32 = 0, bf16 = 1, int8 = 2 };

constexpr int64_t kPanelColumns = 64;
constexpr int64_t kStepBytes = 256;
constexpr int64_t kAlignment = 64;  // a cache line, and a zmm register
constexpr uint32_t kPanelVersion = 1;
constexpr uint64_t kPanelMagic = 0x4b504d4c4c555043;  // "CPULLMPK" in memory order

// Activations are quantised per row and per group of this many k. 256: at 6 rows x 64 columns the float combination
// after each group costs about 60 cycles against 768 of vpdpbusd, and one outlier spoils 256 neighbours, not a row.
constexpr int64_t kActivationGroup = 256;

struct PackedHeader {
  uint64_t magic;
  uint32_t version;
  Format format;
  int64_t columns;  // N, output features
  int64_t depth;    // K, input features
  uint32_t has_bias;
  uint32_t activation_group;
  int64_t total_bytes;
  int64_t reserved[2];
};
static_assert(sizeof(PackedHeader) == kAlignment);

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
constexpr int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

constexpr int64_t depth_per_step(Format format) { return format == Format::int8 ? 4 : format == Format::bf16 ? 2 : 1; }
constexpr int64_t element_bytes(Format format) { return 4 / depth_per_step(format); }
constexpr int64_t panel_count(int64_t columns) { return ceil_div(columns, kPanelColumns); }
constexpr int64_t step_count(Format format, int64_t depth) { return ceil_div(depth, depth_per_step(format)); }
constexpr int64_t activation_groups(int64_t depth) { return ceil_div(depth, kActivationGroup); }

constexpr int64_t bias_offset() { return sizeof(PackedHeader); }
constexpr int64_t scale_offset(int64_t columns, bool has_bias) {
  return bias_offset() + (has_bias ? round_up(columns * 4, kAlignment) : 0);
}
constexpr int64_t panels_offset(Format format, int64_t columns, bool has_bias) {
  const int64_t scales = format == Format::int8 ? panel_count(columns) * kPanelColumns * 4 : 0;
  return scale_offset(columns, has_bias) + scales;
}
constexpr int64_t packed_bytes(Format format, int64_t columns, int64_t depth, bool has_bias) {
  return panels_offset(format, columns, has_bias) + panel_count(columns) * step_count(format, depth) * kStepBytes;
}

// Pointers into one packed weight; valid while its bytes are.
struct PackedView {
  Format format;
  int64_t columns, depth, steps;
  const float* bias;   // null without
  const float* scale;  // int8 only
  const uint8_t* panels;
};

// Writes the whole block (packed_bytes(...) bytes at `out`) from weight[columns][depth], row-major floats.
void pack_panels(const float* weight, const float* bias, Format format, int64_t columns, int64_t depth, int threads,
                 uint8_t* out);
// Reads weight[columns][depth] back, dequantised.
void unpack_panels(const PackedView& packed, int threads, float* weight);
// A null sentence in return means the header is sound.
const char* check_packed(const uint8_t* bytes, int64_t size);
PackedView view_packed(const uint8_t* bytes);

}  // namespace torch_cpullm::layout
