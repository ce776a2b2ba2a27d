#include "kernels/probe/probe.h"

#include "isa/amx.h"

namespace torch_cpullm {
namespace {

constexpr int64_t kRoundsEach = 64;

// Four products a round, of full registers, none loaded: 16 x 16 x 16 pairs or 16 x 16 x 64 bytes each.
template <class Round>
int64_t run_rounds(int64_t iterations, float* sink, int64_t operations, Round round) {
  TileShapes shapes;
  for (int tile = 0; tile < 8; ++tile) shapes.set(tile, kTileRows, layout::kLineBytes);
  const TileScope scope(shapes);
  for (int64_t i = 0; i < iterations * kRoundsEach; ++i) round();
  alignas(64) float sums[kTileRows * kTileRows];
  tile_store<0>(sums, layout::kLineBytes);
  sink[0] += sums[0];
  return iterations * kRoundsEach * 4 * operations;
}

int64_t amx_bf16(int64_t iterations, float* sink) {
  return run_rounds(iterations, sink, 16 * 16 * 32 * 2, [] {
    tile_dot_bf16<0, 4, 6>();
    tile_dot_bf16<1, 4, 7>();
    tile_dot_bf16<2, 5, 6>();
    tile_dot_bf16<3, 5, 7>();
  });
}

int64_t amx_int8(int64_t iterations, float* sink) {
  return run_rounds(iterations, sink, 16 * 16 * 64 * 2, [] {
    tile_dot_s8_u8<0, 4, 6>();
    tile_dot_s8_u8<1, 4, 7>();
    tile_dot_s8_u8<2, 5, 6>();
    tile_dot_s8_u8<3, 5, 7>();
  });
}

}  // namespace
}  // namespace torch_cpullm

namespace torch_cpullm::kernels::amx {

const PeakFn probe_bf16 = amx_bf16;
const PeakFn probe_int8 = amx_int8;

}  // namespace torch_cpullm::kernels::amx

#include "isa/region_end.h"
