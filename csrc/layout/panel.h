// How a linear layer's weight[N][K] lies in memory: panels of 64 columns, cut into blocks of K.
//
//   panels   | panel 0 | panel 1 | ... panel ceil(N/64)-1 |
//   panel    | block 0 | block 1 | ...                      as deep as kBlockLines lines of the format:
//   block    | strip 0 | strip 1 | strip 2 | strip 3 |      columns 0-15, 16-31, 32-47, 48-63 of the panel
//   strip    | head | line 0 | line 1 | ...
//   head     | step f16 [16] | multiplier s8 [groups][16] |        symmetric int4, as a whole in whole lines
//            | scale f16 [groups][16] |                            grouped int8, in whole lines
//            | scale f16 [groups][16] | zero u8 [groups][16] |     asymmetric int4, each part in whole lines
//            (nothing)                                             codes without groups
//
// A line is 64 bytes: 16 columns with 4 bytes each, column n's at 4n. It holds, of k = first .. first + per line - 1,
//
//   codes   k per line   block depth   the 4 bytes of column n                                  a strip of a block
//   f32         1             64       weight[n][k]                                                  4 KiB
//   bf16        2            128       weight[n][k], weight[n][k+1]                                  4 KiB
//   int8        4            256       code + 128, unsigned: the first operand of vpdpbusd           4 KiB (+ scales)
//   int4        8            256       byte j = code[k+j] + 8 | (code[k+4+j] + 8) << 4               2 KiB + head
//                                      (asymmetric: the unsigned code itself, its zero beside the scale)
//
// Symmetric int4 has scales of two levels: value = step[block] * multiplier[group] * code. |multiplier| <= 15, so that
// multiplier * code is in -120..120, a signed byte, and a block of 256 k is one integer product however small its
// groups are (progressive group quantisation, QServe, arXiv 2405.04532, section 4). A head of groups of 32 takes 192
// bytes, where f16 scales took 256: 4.375 bits a weight.
//
// Why strips: a kernel holds 16 rows x 16 columns in registers, so with up to 16 rows every line is read once, in
// address order, and used for all of them; memory and arithmetic overlap. (With the 64 columns of a step side by side,
// 16 rows took three passes, one waiting for memory and two for the multipliers: t(16)/t(1) was 1.57 and is 1.1.)
// Why blocks: 4 strips are 16 KiB, a third of an L1, so that with many rows 64 columns are held there while rows pass;
// and 256 k are one group of activations, after which integer sums become floats anyway.
// Unpacking int4 costs an AND for one half and a shift and an AND for the other.
//
// K is padded to whole groups (int4, grouped int8) or lines, N to whole panels, with the code of zero. Activations are
// padded with zeros as well, so padding never reaches a result.
#pragma once
#include <cstdint>

#include "layout/float16.h"

namespace torch_cpullm::layout {

enum class Codes : uint8_t { f32 = 0, bf16 = 1, int8 = 2, int4 = 3 };
// What x becomes before it is multiplied.
enum class Activation : uint8_t { f32 = 0, bf16 = 1, int8 = 2 };

struct WeightFormat {
  Codes codes;
  Activation activation;
  bool asymmetric;  // int4 only: value = (code - zero) * scale, code 0..15; else code -8..7 with two levels of scales
  int32_t group;    // k that share a scale; 0: all of a column

  bool operator==(const WeightFormat&) const = default;
};

constexpr int64_t kPanelColumns = 64;
constexpr int64_t kStripColumns = 16;
constexpr int64_t kStrips = kPanelColumns / kStripColumns;
constexpr int64_t kLineBytes = 64;
constexpr int64_t kAlignment = 64;  // a cache line, and a zmm register
constexpr int64_t kPageBytes = 4096;
// Activations of a row in one block: 64 f32, 128 bf16 or 256 int8 codes.
constexpr int64_t kActBytes = 256;

// Activations are quantised per row and per group of this many k: one block. At 6 rows x 64 columns the float
// combination after each group costs about 60 cycles against 768 of vpdpbusd, and one outlier spoils 256 neighbours.
constexpr int64_t kActivationGroup = 256;

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
constexpr int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

constexpr int64_t depth_per_line(Codes codes) { return int64_t{1} << static_cast<int>(codes); }
constexpr int64_t block_depth(Codes codes) { return codes == Codes::f32 ? 64 : codes == Codes::bf16 ? 128 : 256; }
constexpr int64_t panel_count(int64_t columns) { return ceil_div(columns, kPanelColumns); }
constexpr bool is_quantized(Codes codes) { return codes == Codes::int8 || codes == Codes::int4; }
constexpr bool has_two_levels(const WeightFormat& format) { return format.codes == Codes::int4 && !format.asymmetric; }
constexpr int64_t padded_depth(const WeightFormat& format, int64_t depth) {
  return round_up(depth, format.group ? format.group : depth_per_line(format.codes));
}
constexpr int64_t groups_in(const WeightFormat& format, int64_t depth) {
  return format.group ? depth / format.group : 0;
}

// Behind the steps of a strip.
constexpr int64_t kMultipliersOffset = kStripColumns * 2;
constexpr int kMostMultiplier = 15;

// Of a strip that holds `depth` k (a whole number of groups, at most a block's).
constexpr int64_t zeros_offset(const WeightFormat& format, int64_t depth) {
  return round_up(groups_in(format, depth) * kStripColumns * 2, kLineBytes);
}
constexpr int64_t lines_offset(const WeightFormat& format, int64_t depth) {
  if (has_two_levels(format))
    return round_up(kMultipliersOffset + groups_in(format, depth) * kStripColumns, kLineBytes);
  const int64_t zeros = format.asymmetric ? round_up(groups_in(format, depth) * kStripColumns, kLineBytes) : 0;
  return zeros_offset(format, depth) + zeros;
}
constexpr int64_t strip_bytes(const WeightFormat& format, int64_t depth) {
  return lines_offset(format, depth) + depth / depth_per_line(format.codes) * kLineBytes;
}

// One block of a panel: k from `first` on, `depth` of them; its strips begin at `offset` and are `strip` bytes apart.
struct BlockPlace {
  int64_t first, depth, offset, strip;
};
constexpr BlockPlace block_place(const WeightFormat& format, int64_t padded, int64_t block) {
  const int64_t whole = block_depth(format.codes), first = block * whole;
  const int64_t depth = padded - first < whole ? padded - first : whole;
  return {first, depth, block * kStrips * strip_bytes(format, whole), strip_bytes(format, depth)};
}
constexpr int64_t block_count(const WeightFormat& format, int64_t padded) {
  return ceil_div(padded, block_depth(format.codes));
}
constexpr int64_t panel_bytes(const WeightFormat& format, int64_t padded) {
  const BlockPlace last = block_place(format, padded, block_count(format, padded) - 1);
  return last.offset + kStrips * last.strip;
}

}  // namespace torch_cpullm::layout
