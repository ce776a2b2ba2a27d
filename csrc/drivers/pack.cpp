#include "drivers/pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "drivers/pack_grid.h"
#include "runtime/parallel.h"
#include "runtime/scratch.h"

namespace torch_cpullm::drivers {
namespace {

using kernels::Grid;
using layout::BlockPlace;
using layout::Codes;
using layout::kStripColumns;

// The smallest power of two that is not below x; 1 for 0, NaN for NaN.
float power_of_two_from(float x) {
  if (x == 0.0f || std::isnan(x)) return x == 0.0f ? 1.0f : x;
  int exponent;
  const float fraction = std::frexp(x, &exponent);
  return std::ldexp(1.0f, fraction == 0.5f ? exponent - 1 : exponent);
}

// One row on its way from floats to lines.
class RowPacker {
 public:
  RowPacker(const PackSource& source, const layout::WeightFormat& format, float* row, int8_t* codes)
      : source_(source),
        format_(format),
        padded_(layout::padded_depth(format, source.depth)),
        groups_(format.group ? layout::ceil_div(source.depth, format.group) : 1),
        kernels_(kernels::quantize_kernels()),
        row_(row),
        codes_(codes) {}

  void pack(int64_t n, uint8_t* panel, float* column_scale) {
    read(n);
    if (format_.codes == Codes::int8 && !format_.group) {
      *column_scale = source_.scale ? source_.scale[n] : magnitude(kernels_.extremes(row_, source_.depth)) / 127.0f;
      kernels_.encode(row_, source_.depth, {*column_scale, 0.0f, -127.0f, 127.0f}, codes_);
    } else if (layout::is_quantized(format_.codes)) {
      *column_scale = column_scale_ = normalise(n);
    }
    for (int64_t b = 0; b < layout::block_count(format_, padded_); ++b) {
      const BlockPlace place = layout::block_place(format_, padded_, b);
      const int64_t in_panel = n % layout::kPanelColumns;
      uint8_t* strip = panel + place.offset + in_panel / kStripColumns * place.strip;
      if (layout::has_two_levels(format_)) {
        quantise_levels(n, place, in_panel % kStripColumns, strip);
      } else if (format_.group) {
        quantise_block(n, place, in_panel % kStripColumns, strip);
      }
      write_lines(place, strip + layout::lines_offset(format_, place.depth) + 4 * (in_panel % kStripColumns));
    }
  }

 private:
  void read(int64_t n) {
    const int64_t depth = source_.depth;
    kernels_.widen(source_.weight.from(n * depth), depth, row_);
    if (source_.multiplier)
      for (int64_t k = 0; k < depth; ++k) row_[k] /= source_.multiplier[k];
    std::fill(row_ + depth, row_ + padded_, 0.0f);
    if (layout::is_quantized(format_.codes)) std::memset(codes_, 0, static_cast<size_t>(padded_));
  }

  // Brings the row's group scales, or steps, into (0, 1]; returns the power of two that was taken out.
  float normalise(int64_t n) {
    const bool levels = layout::has_two_levels(format_);
    float largest = 0.0f;
    if (source_.scale) {
      for (int64_t g = 0; g < groups_; ++g) largest = std::max(largest, std::fabs(source_.scale[n * groups_ + g]));
      if (levels) largest /= static_cast<float>(layout::kMostMultiplier);
      if (std::isnan(magnitude(kernels_.extremes(row_, source_.depth)))) largest = NAN;
    } else {
      const float highest = format_.codes == Codes::int8 ? 127.0f : levels ? kMostOfStep : 7.0f;
      largest = magnitude(kernels_.extremes(row_, source_.depth)) / highest;
    }
    const float scale = power_of_two_from(largest);
    for (int64_t k = 0; k < source_.depth; ++k) row_[k] /= scale;
    return scale;
  }

  Grid given(int64_t n, int64_t group) const {
    const int64_t entry = n * groups_ + group;
    const float scale = source_.scale[entry] / column_scale_;
    if (format_.codes == Codes::int8) return rounded({scale, 0.0f, -127.0f, 127.0f});
    return rounded({scale, source_.zero[entry], 0.0f, 15.0f});
  }

  void encode_group(int64_t first, int64_t width, const Grid& grid) {
    kernels_.encode(row_ + first, width, grid, codes_ + first);
    for (int64_t k = width; k < format_.group; ++k) codes_[first + k] = static_cast<int8_t>(grid.zero);
  }

  void quantise_block(int64_t n, const BlockPlace& place, int64_t column, uint8_t* strip) {
    auto* scales = reinterpret_cast<layout::float16*>(strip);
    uint8_t* zeros = strip + layout::zeros_offset(format_, place.depth);
    for (int64_t g = 0; g < place.depth / format_.group; ++g) {
      const int64_t first = place.first + g * format_.group;
      const int64_t width = std::min<int64_t>(format_.group, source_.depth - first);
      const Grid grid =
          source_.scale ? given(n, first / format_.group) : best_grid(format_, kernels_, row_ + first, width);
      encode_group(first, width, grid);
      scales[g * kStripColumns + column] = layout::to_float16(grid.scale);
      if (format_.asymmetric) zeros[g * kStripColumns + column] = static_cast<uint8_t>(grid.zero);
    }
  }

  // With two levels of scales.
  void quantise_levels(int64_t n, const BlockPlace& place, int64_t column, uint8_t* strip) {
    const int64_t groups = place.depth / format_.group, left = source_.depth - place.first;
    float given[layout::kActivationGroup / 32];
    const float* scales = source_.scale ? source_.scale + n * groups_ + place.first / format_.group : nullptr;
    for (int64_t g = 0; scales && g < groups; ++g) given[g] = scales[g] / column_scale_;
    const float step =
        scales ? step_of(given, groups) : best_step(kernels_, row_ + place.first, std::min(place.depth, left));
    reinterpret_cast<layout::float16*>(strip)[column] = layout::to_float16(step);
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t within = g * format_.group, first = place.first + within;
      const int64_t width = std::min<int64_t>(format_.group, left - within);
      const int multiplier =
          scales ? multiplier_of(given[g], step) : best_multiplier(kernels_, row_ + first, width, step);
      encode_group(first, width, level_grid(multiplier, step));
      strip[layout::kMultipliersOffset + g * kStripColumns + column] = static_cast<uint8_t>(multiplier);
    }
  }

  // The four bytes of this column in every line of a block.
  void write_lines(const BlockPlace& place, uint8_t* out) const {
    const int64_t lines = place.depth / layout::depth_per_line(format_.codes);
    for (int64_t line = 0; line < lines; ++line, out += layout::kLineBytes) {
      const uint32_t four = unit(place.first + line * layout::depth_per_line(format_.codes));
      std::memcpy(out, &four, sizeof four);
    }
  }

  uint32_t unit(int64_t k) const {
    uint32_t four, more;
    switch (format_.codes) {
      case Codes::f32:
        std::memcpy(&four, row_ + k, sizeof four);
        return four;
      case Codes::bf16:
        return bf16(row_[k]) | bf16(row_[k + 1]) << 16;
      case Codes::int8:
        std::memcpy(&four, codes_ + k, sizeof four);
        return four ^ 0x80808080u;
      default:
        std::memcpy(&four, codes_ + k, sizeof four);
        std::memcpy(&more, codes_ + k + 4, sizeof more);
        four = (four & 0x0f0f0f0fu) | (more & 0x0f0f0f0fu) << 4;
        return format_.asymmetric ? four : four ^ 0x88888888u;  // + 8 in four bits
    }
  }

  static uint32_t bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (std::isnan(x)) return (bits >> 16) | 0x40;
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  }

  const PackSource& source_;
  const layout::WeightFormat& format_;
  int64_t padded_, groups_;
  const kernels::QuantizeKernels& kernels_;
  float* row_;
  int8_t* codes_;
  float column_scale_ = 1.0f;
};

}  // namespace

void clear_panel(const layout::WeightFormat& format, int64_t padded, uint8_t* panel) {
  const int code = format.codes == Codes::int8 ? 0x80 : format.codes == Codes::int4 && !format.asymmetric ? 0x88 : 0;
  std::memset(panel, 0, static_cast<size_t>(layout::panel_bytes(format, padded)));
  for (int64_t b = 0; code != 0 && b < layout::block_count(format, padded); ++b) {
    const BlockPlace place = layout::block_place(format, padded, b);
    const int64_t lines = layout::lines_offset(format, place.depth);
    for (int64_t strip = 0; strip < layout::kStrips; ++strip)
      std::memset(panel + place.offset + strip * place.strip + lines, code, static_cast<size_t>(place.strip - lines));
  }
}

void pack_weight(const PackSource& source, const layout::WeightFormat& format, int threads, uint8_t* out) {
  const layout::PackedPlaces at =
      layout::packed_places(format, source.columns, source.depth, source.bias != nullptr, source.multiplier != nullptr);
  const int64_t padded = layout::padded_depth(format, source.depth), bytes = layout::panel_bytes(format, padded);
  const int64_t end = at.panels + layout::panel_count(source.columns) * bytes;
  std::memset(out, 0, static_cast<size_t>(at.panels));
  std::memset(out + end, 0, static_cast<size_t>(at.total - end));
  layout::write_header(format, source.columns, source.depth, source.bias != nullptr, source.multiplier, out);
  const auto copy = [&](const float* from, int64_t count, int64_t to) {
    if (from) std::memcpy(out + to, from, static_cast<size_t>(count) * sizeof(float));
  };
  copy(source.bias, source.columns, at.bias);
  copy(source.multiplier, source.depth, at.multiplier);
  auto* column_scale = reinterpret_cast<float*>(out + at.column_scale);
  float* rows = nullptr;
  int8_t* codes = nullptr;
  runtime::with_scratch(
      [&](runtime::Carver& carver) {
        rows = carver.take<float>(threads * padded);
        codes = carver.take<int8_t>(threads * padded);
      },
      [&] {
        runtime::parallel(threads, [&](const runtime::Team& team) {
          RowPacker packer(source, format, rows + team.rank * padded, codes + team.rank * padded);
          const runtime::Range mine = team.share(layout::panel_count(source.columns));
          float unused;
          for (int64_t p = mine.begin; p < mine.end; ++p) {
            uint8_t* panel = out + at.panels + p * bytes;
            const int64_t last = std::min(source.columns, (p + 1) * layout::kPanelColumns);
            if (last < (p + 1) * layout::kPanelColumns || format.group) clear_panel(format, padded, panel);
            for (int64_t n = p * layout::kPanelColumns; n < last; ++n)
              packer.pack(n, panel, layout::is_quantized(format.codes) ? column_scale + n : &unused);
          }
        });
      });
}

void unpack_weight(const layout::PackedView& packed, int threads, float* weight) {
  runtime::parallel(threads, [&](const runtime::Team& team) {
    const runtime::Range mine = team.share(packed.columns);
    for (int64_t n = mine.begin; n < mine.end; ++n) layout::unpack_row(packed, n, weight + n * packed.depth);
  });
}

}  // namespace torch_cpullm::drivers
