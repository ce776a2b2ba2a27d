// Symmetric int4 on AMX. Included by linear_amx.cpp inside its target region.
//
// A block's codes times their groups' multipliers are signed bytes: its 256 k are one integer product, as int8's.
//
//   c = fma(act_scale, float(int32 [16][16]) * step, c)     no offset: both operands are signed
//
// They are made once for all rows, 16 KiB that stay in L1. (Made a part a step while the block before is multiplied, in
// two buffers: README.md.)
#pragma once
#include "kernels/linear/amx_plain.h"
#include "kernels/linear/widen_u4.h"

namespace torch_cpullm {
namespace {

constexpr int64_t kAmxTwoLevelFrom = 5;  // rows; measured, README.md
constexpr int64_t kWidenedStrip = kBlockTiles * kTileBytes;

struct FinishTwoLevel {
  const float* act_scale;
  const uint8_t* strip;  // stored: it begins with its steps
  int64_t next;

  template <int Strips>
  struct OfStrips {
    const float* act_scale;
    f32x16 step[Strips];

    f32x16 operator()(int64_t r, int s, i32x16 sum, f32x16 c) const {
      return fma(set1_f32(act_scale[r]), mul(to_f32(sum), step[s]), c);
    }
  };
  template <int Strips>
  OfStrips<Strips> of_strips() const {
    OfStrips<Strips> out{act_scale, {}};
    for (int s = 0; s < Strips; ++s)
      out.step[s] = load_as_f32(reinterpret_cast<const layout::float16*>(strip + s * next));
    return out;
  }
};

struct SignedBytes {
  template <int C, int A, int B>
  static void dot() {
    tile_dot_s8_s8<C, A, B>();
  }
};

// The last tile may hold fewer rows: it reads the ones behind them (linear.h), and keeps its own.
inline void two_level_pass(const kernels::LinearPanel& p) {
  const TileScope scope(plain_shapes(kTileRows, kTileRows));
  // Where a block fills no whole registers, activations of zero meet what lies behind it.
  alignas(64) uint8_t widened[layout::kStrips * kWidenedStrip];
  WaitingSums<FinishTwoLevel> sums{};
  const int64_t tiles = layout::ceil_div(p.rows, kAmxPair);
  for (int64_t block = 0; block < layout::block_count(p.format, p.padded); ++block) {
    const layout::BlockPlace place = layout::block_place(p.format, p.padded, block);
    const uint8_t* stored = p.weight + place.offset;
    widen_u4_block(stored, p.format, place, 0, widened, kWidenedStrip);
    const int64_t at = block * p.act_rows, steps = layout::ceil_div(place.depth, layout::kLineBytes);
    const int64_t lines = layout::ceil_div(place.strip, tiles * steps * layout::kLineBytes);
    TileBlock tile{p.act + at * layout::kActBytes,         widened, kWidenedStrip, steps,
                   stored + layout::kStrips * place.strip, lines,   place.strip};
    for (int64_t row = 0; row < p.rows; row += kAmxPair, tile.fetch += steps * lines * layout::kLineBytes) {
      for (int64_t strip = 0; strip < layout::kStrips; strip += 2) {
        const FinishTwoLevel finish{p.act_scale + at + row, stored + strip * place.strip, place.strip};
        if (p.rows - row > kTileRows) {
          multiply_integers<SignedBytes, 2, 2>(tile, row, strip, p, finish, sums);
        } else {
          multiply_integers<SignedBytes, 1, 2>(tile, row, strip, p, finish, sums);
        }
      }
    }
  }
  finish_rows<2>(sums, 0, kAmxPair);
}

// Fewer than kAmxTwoLevelFrom rows take the AVX-512 kernel, whose bits are the same: integers, and floats in one order.
template <const kernels::LinearFn& few>
void run_two_level(const kernels::LinearPanel& p) {
  (p.rows < kAmxTwoLevelFrom ? few : two_level_pass)(p);
}

}  // namespace
}  // namespace torch_cpullm
