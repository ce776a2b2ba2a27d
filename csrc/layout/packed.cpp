#include "layout/packed.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

namespace torch_cpullm::layout {
namespace {

// Steps of splitmix64 (Steele et al., OOPSLA 2014) over words: a changed bit changes half of the result's.
uint64_t mix(uint64_t state, uint64_t word) {
  state = (state ^ word) * 0x9e3779b97f4a7c15u;
  return state ^ (state >> 32);
}

uint64_t checksum_of(const PackedHeader& header) {
  uint64_t words[sizeof header / 8], state = 0;
  std::memcpy(words, &header, sizeof header);
  for (size_t i = 0; i < offsetof(PackedHeader, checksum) / 8; ++i) state = mix(state, words[i]);
  return state;
}

float load_float(const uint8_t* p) {
  float out;
  std::memcpy(&out, p, sizeof out);
  return out;
}

}  // namespace

PackedPlaces packed_places(const WeightFormat& format, int64_t columns, int64_t depth, bool has_bias,
                           bool has_multiplier) {
  PackedPlaces at{};
  at.bias = sizeof(PackedHeader);
  at.multiplier = at.bias + (has_bias ? round_up(columns * 4, kLineBytes) : 0);
  at.column_scale = at.multiplier + (has_multiplier ? round_up(depth * 4, kLineBytes) : 0);
  const int64_t scales = is_quantized(format.codes) ? panel_count(columns) * kPanelColumns * 4 : 0;
  at.panels = round_up(at.column_scale + scales, kPageBytes);
  at.total = round_up(at.panels + panel_count(columns) * panel_bytes(format, padded_depth(format, depth)), kPageBytes);
  return at;
}

const char* check_format(const WeightFormat& format) {
  const bool float_codes = !is_quantized(format.codes);
  if (format.codes > Codes::int4 || format.activation > Activation::int8) return "has an unknown format";
  if (float_codes &&
      (format.group || format.asymmetric || static_cast<int>(format.activation) != static_cast<int>(format.codes)))
    return "has float weights with groups, zeros or other activations";
  if (!float_codes && format.activation == Activation::f32) return "has quantised weights with float32 activations";
  if (format.codes == Codes::int8 && format.asymmetric) return "has int8 weights with zeros";
  if (format.group != 0 && format.group != 32 && format.group != 64 && format.group != 128)
    return "has groups other than 32, 64 or 128";
  if (format.codes == Codes::int4 && format.group == 0) return "has int4 weights without groups";
  return nullptr;
}

uint64_t input_id_of(const float* multiplier, int64_t depth) {
  if (!multiplier) return 0;
  uint64_t state = static_cast<uint64_t>(depth);
  for (int64_t k = 0; k < depth; ++k) {
    uint32_t bits;
    std::memcpy(&bits, multiplier + k, sizeof bits);
    state = mix(state, bits);
  }
  return state ? state : 1;
}

void write_header(const WeightFormat& format, int64_t columns, int64_t depth, bool has_bias, const float* multiplier,
                  uint8_t* out) {
  PackedHeader header{};
  header.magic = kPackedMagic;
  header.version = kPackedVersion;
  header.codes = format.codes;
  header.activation = format.activation;
  header.asymmetric = format.asymmetric;
  header.has_bias = has_bias;
  header.group = format.group;
  header.has_multiplier = multiplier != nullptr;
  header.columns = columns;
  header.depth = depth;
  header.total_bytes = packed_places(format, columns, depth, has_bias, multiplier != nullptr).total;
  header.input_id = input_id_of(multiplier, depth);
  header.checksum = checksum_of(header);
  std::memcpy(out, &header, sizeof header);
}

const char* check_packed(const uint8_t* bytes, int64_t size) {
  if (size < static_cast<int64_t>(sizeof(PackedHeader))) return "is shorter than a header of 64 bytes";
  PackedHeader header;
  std::memcpy(&header, bytes, sizeof header);
  if (header.magic != kPackedMagic) return "does not begin with the mark of a packed weight";
  if (header.version != kPackedVersion) return "was packed in another version of the layout; pack the weight again";
  if (header.checksum != checksum_of(header)) return "has a header whose checksum does not fit (altered?)";
  if (header.asymmetric > 1 || header.has_bias > 1 || header.has_multiplier > 1) return "has an unknown format";
  const WeightFormat format{header.codes, header.activation, header.asymmetric != 0, header.group};
  if (const char* fault = check_format(format)) return fault;
  // 2^31 in each dimension keeps every offset below 2^63, so a hostile header cannot overflow the sizes below.
  if (header.columns < 1 || header.depth < 1 || header.columns > INT32_MAX || header.depth > INT32_MAX)
    return "has impossible sizes in its header";
  const int64_t total =
      packed_places(format, header.columns, header.depth, header.has_bias != 0, header.has_multiplier != 0).total;
  if (header.total_bytes != total || total != size) return "has a length that does not fit its header (truncated?)";
  return nullptr;
}

PackedView view_packed(const uint8_t* bytes) {
  PackedHeader header;
  std::memcpy(&header, bytes, sizeof header);
  const WeightFormat format{header.codes, header.activation, header.asymmetric != 0, header.group};
  const PackedPlaces at =
      packed_places(format, header.columns, header.depth, header.has_bias != 0, header.has_multiplier != 0);
  const auto floats = [&](bool there, int64_t offset) {
    return there ? reinterpret_cast<const float*>(bytes + offset) : nullptr;
  };
  const int64_t padded = padded_depth(format, header.depth);
  return {format,
          header.columns,
          header.depth,
          padded,
          panel_bytes(format, padded),
          header.input_id,
          floats(header.has_bias != 0, at.bias),
          floats(header.has_multiplier != 0, at.multiplier),
          floats(is_quantized(format.codes), at.column_scale),
          bytes + at.panels};
}

namespace {

float unpack_element(const PackedView& packed, const uint8_t* strip, const BlockPlace& place, int64_t column,
                     int64_t within) {
  const WeightFormat& format = packed.format;
  const int64_t per_line = depth_per_line(format.codes);
  const uint8_t* four = strip + lines_offset(format, place.depth) + within / per_line * kLineBytes + 4 * column;
  if (format.codes == Codes::f32) return load_float(four);
  if (format.codes == Codes::bf16) {
    uint16_t half;
    std::memcpy(&half, four + 2 * (within % 2), sizeof half);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
  }
  const int64_t entry = format.group ? within / format.group * kStripColumns + column : 0;
  int32_t code;
  if (format.codes == Codes::int8) {
    code = four[within % 4] - 128;
  } else {
    const uint8_t byte = four[within % 4];
    code = (within % 8 < 4 ? byte & 15 : byte >> 4) -
           (format.asymmetric ? strip[zeros_offset(format, place.depth) + entry] : 8);
  }
  if (!format.group) return static_cast<float>(code);
  float16 scale;
  if (has_two_levels(format)) {
    std::memcpy(&scale, strip + column * 2, sizeof scale);
    const int multiplier = static_cast<int8_t>(strip[kMultipliersOffset + entry]);
    return static_cast<float>(code * multiplier) * to_float(scale);
  }
  std::memcpy(&scale, strip + entry * 2, sizeof scale);
  return static_cast<float>(code) * to_float(scale);
}

}  // namespace

void unpack_row(const PackedView& packed, int64_t n, float* out) {
  const uint8_t* panel = packed.panel(n / kPanelColumns);
  const int64_t strip = n % kPanelColumns / kStripColumns, column = n % kStripColumns;
  const int64_t blocks = block_count(packed.format, packed.padded);
  const float scale = packed.column_scale ? packed.column_scale[n] : 1.0f;
  for (int64_t block = 0; block < blocks; ++block) {
    const BlockPlace place = block_place(packed.format, packed.padded, block);
    const uint8_t* bytes = panel + place.offset + strip * place.strip;
    const int64_t depth = std::min(place.depth, packed.depth - place.first);
    for (int64_t k = 0; k < depth; ++k) {
      const float value = unpack_element(packed, bytes, place, column, k) * scale;
      out[place.first + k] = packed.multiplier ? value * packed.multiplier[place.first + k] : value;
    }
  }
}

}  // namespace torch_cpullm::layout
