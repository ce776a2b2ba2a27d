// A packed weight: one block of bytes that describes itself.
//
//   byte 0      64                                                            a multiple of 4096
//   | header 64 | bias f32[N]? | multiplier f32[K]? | column scale f32[64 * panels]? | panels (layout/panel.h) |
//                 has_bias       has_multiplier       int8, int4                      each part in whole lines
//
// The whole is a multiple of 4096 bytes as well, so that weights one behind the other all have their panels at the
// beginning of a page: the processor fetches ahead within pages, and a strip of 4 KiB that lies across two costs a
// tenth of the speed at which one row is multiplied.
//
//   value of weight[n][k] = (code - zero) * group scale (1 without groups) * column scale[n] * multiplier[k]
//
// The group scale of symmetric int4 is the block's step times the group's own small multiplier (layout/panel.h).
// The column scale is absmax / 127 without groups; with groups it is a power of two that brings the group scales (or
// steps) of the column into (0, 1], where f16 keeps 11 bits of them whatever the weights' magnitude.
// The multiplier[k] belongs to the input: y = W x = (W / m) (m x). A channel whose activations are far larger than its
// neighbours' is divided there and multiplied here, so that neither side's rounding suffers (SmoothQuant, arXiv
// 2211.10438, section 4; AWQ, arXiv 2306.00978, section 3.2). It lies in the weight and not in the norm before it, so
// that no other module of the model changes.
#pragma once
#include <cstdint>

#include "layout/panel.h"

namespace torch_cpullm::layout {

constexpr uint32_t kPackedVersion = 3;
constexpr uint64_t kPackedMagic = 0x4b504d4c4c555043;  // "CPULLMPK" in memory order

struct PackedHeader {
  uint64_t magic;
  uint32_t version;
  Codes codes;
  Activation activation;
  uint8_t asymmetric;
  uint8_t has_bias;
  int32_t group;
  uint32_t has_multiplier;
  int64_t columns;  // N, output features
  int64_t depth;    // K, input features
  int64_t total_bytes;
  uint64_t input_id;  // of the multiplier's values; weights that share their prepared input must agree in it
  uint64_t checksum;  // of the words above
};
static_assert(sizeof(PackedHeader) == kAlignment);

// Where the parts of a packed weight begin.
struct PackedPlaces {
  int64_t bias, multiplier, column_scale, panels, total;
};
PackedPlaces packed_places(const WeightFormat& format, int64_t columns, int64_t depth, bool has_bias,
                           bool has_multiplier);

// Pointers into one packed weight; valid while its bytes are.
struct PackedView {
  WeightFormat format;
  int64_t columns, depth, padded;  // padded: K in whole lines and groups
  int64_t panel_bytes;
  uint64_t input_id;
  const float* bias;          // null without
  const float* multiplier;    // null without
  const float* column_scale;  // int8 and int4
  const uint8_t* panels;

  const uint8_t* panel(int64_t index) const { return panels + index * panel_bytes; }
  // Whether rows prepared for one weight serve the other.
  bool same_input(const PackedView& other) const {
    return format.activation == other.format.activation && depth == other.depth && padded == other.padded &&
           format.group == other.format.group && input_id == other.input_id;
  }
};

// A null sentence means that the format exists.
const char* check_format(const WeightFormat& format);
// Zero for null, never zero else.
uint64_t input_id_of(const float* multiplier, int64_t depth);
void write_header(const WeightFormat& format, int64_t columns, int64_t depth, bool has_bias, const float* multiplier,
                  uint8_t* out);
// A null sentence in return means the header is sound.
const char* check_packed(const uint8_t* bytes, int64_t size);
PackedView view_packed(const uint8_t* bytes);
// Reads row n of the weight back, dequantised: out[depth].
void unpack_row(const PackedView& packed, int64_t n, float* out);

}  // namespace torch_cpullm::layout
