#include "drivers/slice.h"

#include <algorithm>
#include <cstring>

#include "drivers/pack.h"

namespace torch_cpullm::drivers {
namespace {

using layout::BlockPlace;
using layout::kStripColumns;

// One column of panels: where its bytes lie in a block.
template <class Byte>
class Column {
 public:
  Column(const layout::WeightFormat& format, int64_t padded, Byte* panels, int64_t n)
      : format_(format),
        padded_(padded),
        panel_(panels + n / layout::kPanelColumns * layout::panel_bytes(format, padded)),
        strip_(n % layout::kPanelColumns / kStripColumns),
        column_(n % kStripColumns) {}

  BlockPlace place(int64_t k) const {
    return layout::block_place(format_, padded_, k / layout::block_depth(format_.codes));
  }
  // The four bytes that hold k and what follows it.
  Byte* line(const BlockPlace& place, int64_t k) const {
    const int64_t line = (k - place.first) / layout::depth_per_line(format_.codes);
    return strip(place) + layout::lines_offset(format_, place.depth) + line * layout::kLineBytes + 4 * column_;
  }
  Byte* step(const BlockPlace& place) const { return strip(place) + 2 * column_; }
  Byte* multiplier(const BlockPlace& place, int64_t k) const {
    return strip(place) + layout::kMultipliersOffset + entry(place, k);
  }
  Byte* scale(const BlockPlace& place, int64_t k) const { return strip(place) + 2 * entry(place, k); }
  Byte* zero(const BlockPlace& place, int64_t k) const {
    return strip(place) + layout::zeros_offset(format_, place.depth) + entry(place, k);
  }

 private:
  Byte* strip(const BlockPlace& place) const { return panel_ + place.offset + strip_ * place.strip; }
  int64_t entry(const BlockPlace& place, int64_t k) const {
    return (k - place.first) / format_.group * kStripColumns + column_;
  }

  const layout::WeightFormat& format_;
  int64_t padded_;
  Byte* panel_;
  int64_t strip_, column_;
};

void copy_codes(const layout::WeightFormat& format, const Column<const uint8_t>& from, int64_t first,
                const Column<uint8_t>& to, int64_t padded) {
  const int64_t per_line = layout::depth_per_line(format.codes);
  for (int64_t k = 0; k < padded;) {
    const BlockPlace source = from.place(first + k), target = to.place(k);
    const int64_t end = std::min(target.first + target.depth, source.first + source.depth - first);
    const uint8_t* in = from.line(source, first + k);
    for (uint8_t* out = to.line(target, k); k < end; k += per_line, in += layout::kLineBytes, out += layout::kLineBytes)
      std::memcpy(out, in, 4);
  }
}

void copy_scales(const layout::WeightFormat& format, const Column<const uint8_t>& from, int64_t first,
                 const Column<uint8_t>& to, int64_t padded) {
  for (int64_t k = 0; k < padded; k += format.group) {
    const BlockPlace source = from.place(first + k), target = to.place(k);
    if (layout::has_two_levels(format)) {
      std::memcpy(to.step(target), from.step(source), 2);
      *to.multiplier(target, k) = *from.multiplier(source, first + k);
      continue;
    }
    std::memcpy(to.scale(target, k), from.scale(source, first + k), 2);
    if (format.asymmetric) *to.zero(target, k) = *from.zero(source, first + k);
  }
}

// Where each row of the part comes from.
std::vector<int64_t> sources_of(const PackedPart& part) {
  std::vector<int64_t> rows;
  for (const runtime::Range& range : part.rows)
    for (int64_t n = range.begin; n < range.end; ++n) rows.push_back(n);
  return rows;
}

}  // namespace

layout::PackedPlaces part_places(const layout::PackedView& whole, const PackedPart& part) {
  return layout::packed_places(whole.format, part.columns(), part.depth(), whole.bias && part.bias,
                               whole.multiplier != nullptr);
}

void slice_packed(const layout::PackedView& whole, const PackedPart& part, int threads, uint8_t* out) {
  const layout::WeightFormat& format = whole.format;
  const layout::PackedPlaces at = part_places(whole, part);
  const std::vector<int64_t> source = sources_of(part);
  const int64_t columns = part.columns(), depth = part.depth(), first = part.inputs.begin;
  const int64_t padded = layout::padded_depth(format, depth), bytes = layout::panel_bytes(format, padded);
  const int64_t end = at.panels + layout::panel_count(columns) * bytes;
  std::memset(out, 0, static_cast<size_t>(at.panels));
  std::memset(out + end, 0, static_cast<size_t>(at.total - end));
  const bool has_bias = whole.bias && part.bias;
  const float* multiplier = whole.multiplier ? whole.multiplier + first : nullptr;
  layout::write_header(format, columns, depth, has_bias, multiplier, out);
  if (multiplier) std::memcpy(out + at.multiplier, multiplier, static_cast<size_t>(depth) * sizeof(float));
  const auto gather = [&](const float* from, int64_t to) {
    auto* values = reinterpret_cast<float*>(out + to);
    for (int64_t n = 0; from && n < columns; ++n) values[n] = from[source[static_cast<size_t>(n)]];
  };
  gather(has_bias ? whole.bias : nullptr, at.bias);
  gather(whole.column_scale, at.column_scale);
  runtime::parallel(threads, [&](const runtime::Team& team) {
    const runtime::Range mine = team.share(layout::panel_count(columns));
    for (int64_t p = mine.begin; p < mine.end; ++p) {
      clear_panel(format, padded, out + at.panels + p * bytes);
      const int64_t last = std::min(columns, (p + 1) * layout::kPanelColumns);
      for (int64_t n = p * layout::kPanelColumns; n < last; ++n) {
        const Column<const uint8_t> from(format, whole.padded, whole.panels, source[static_cast<size_t>(n)]);
        const Column<uint8_t> to(format, padded, out + at.panels, n);
        copy_codes(format, from, first, to, padded);
        if (format.group) copy_scales(format, from, first, to, padded);
      }
    }
  });
}

}  // namespace torch_cpullm::drivers
