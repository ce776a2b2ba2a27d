#include "drivers/blocks.h"

#include <algorithm>
#include <deque>

namespace torch_cpullm::drivers {
namespace {

using layout::floats;
using runtime::Carver;
using runtime::Range;
using runtime::Team;

// Rows of a block whose terms ranks send at once. The same on all ranks, whose kernels may work on more.
constexpr int64_t kMostSentRows = GatedStreams::kMostRows;
static_assert(kMostSentRows <= GatedTiles::kMostRows);

int64_t most_rows(const Outlet& outlet, int64_t model) {
  const int64_t most = most_sent_rows(outlet, model);
  return outlet.ranks ? std::min(kMostSentRows, most) : most;
}

class AttentionStage final : public Stage {
 public:
  AttentionStage(const AttentionBlock& block, layout::ConstElements hidden, int64_t model, const Outlet& outlet,
                 int threads)
      : block_(block),
        hidden_(hidden),
        model_(model),
        rows_(block.attention.batch * block.attention.tokens),
        threads_(threads),
        input_(block.qkv[0], rows_),
        qkv_(block.qkv, rows_, threads),
        attention_(block.attention, threads) {
    const int64_t most = most_rows(outlet, model);
    for (int64_t first = 0; first < rows_; first += most)
      projections_.emplace_back(block.output, block.output_norm, std::min(most, rows_ - first), threads,
                                outlet.from(first * model));
  }

  void plan(Carver& carver) override {
    const int64_t width = block_.attention.heads * channels();
    input_.plan(carver);
    qkv_.plan(carver);
    attention_.plan(carver);
    for (Projection& projection : projections_) projection.plan(carver);
    normed_ = carver.take<float>(threads_ * model_);
    qkv_rows_ = carver.take<float>(rows_ * qkv_.columns());
    attended_ = carver.take<float>(rows_ * width);
    attention_.bind(floats(qkv_rows_), qkv_.columns(), floats(attended_), width);
  }

  void run(const Team& team) override {
    const kernels::RowwiseKernels& kernels = kernels::rowwise_kernels();
    const Range mine = team.share(rows_);
    prepare_normed(team, block_.input_norm, hidden_, model_, normed_, rows_, input_);
    team.barrier();
    qkv_.multiply(team, input_, {floats(qkv_rows_), qkv_.columns()});
    team.barrier();
    for (int64_t row = mine.begin; row < mine.end; ++row)
      block_.rows.finish(block_.attention, kernels, row, qkv_rows_ + row * qkv_.columns());
    team.barrier();
    attention_.run(team);
    int64_t first = 0;
    for (Projection& projection : projections_) {
      team.barrier();
      projection.begin(team);
      projection.input().prepare_all(team, floats(attended_).from(first * block_.attention.heads * channels()));
      team.barrier();
      projection.run(team);
      first += projection.rows();
    }
  }

 private:
  int64_t channels() const { return block_.attention.pages.channels; }

  const AttentionBlock& block_;
  layout::ConstElements hidden_;
  int64_t model_, rows_;
  int threads_;
  PreparedRows input_;
  LinearGroup qkv_;
  Attention attention_;
  std::deque<Projection> projections_;
  float *normed_ = nullptr, *qkv_rows_ = nullptr, *attended_ = nullptr;
};

template <class Gated>
class MlpStage final : public Stage {
 public:
  MlpStage(const MlpBlock& block, layout::ConstElements hidden, int64_t rows, int64_t model, const Outlet& outlet,
           int threads)
      : block_(block),
        hidden_(hidden),
        model_(model),
        rows_(rows),
        threads_(threads),
        input_(block.gated.gate_up[0], rows),
        gated_(block.gated, rows, threads),
        projection_(block.down, block.output_norm, rows, threads, outlet) {}

  void plan(Carver& carver) override {
    input_.plan(carver);
    gated_.plan(carver);
    projection_.plan(carver);
    normed_ = carver.take<float>(threads_ * model_);
  }

  void run(const Team& team) override {
    prepare_normed(team, block_.input_norm, hidden_, model_, normed_, rows_, input_);
    team.barrier();
    projection_.begin(team);
    gated_.run(team, input_, projection_.input());
    team.barrier();
    projection_.run(team);
  }

 private:
  const MlpBlock& block_;
  layout::ConstElements hidden_;
  int64_t model_, rows_;
  int threads_;
  PreparedRows input_;
  Gated gated_;
  Projection projection_;
  float* normed_ = nullptr;
};

void add_attention(Stages& stages, const AttentionBlock& block, const LayerRows& rows, const Outlet& outlet,
                   int threads) {
  stages.push_back(std::make_unique<AttentionStage>(block, rows.hidden, rows.model, outlet, threads));
}

void add_mlp(Stages& stages, const MlpBlock& block, const LayerRows& rows, const Outlet& outlet, int threads) {
  const bool tiles = GatedTiles::suit(block.gated, rows.rows, threads);
  const int64_t most = std::min(tiles ? GatedTiles::kMostRows : GatedStreams::kMostRows, most_rows(outlet, rows.model));
  for (int64_t first = 0; first < rows.rows; first += most) {
    const int64_t count = std::min(most, rows.rows - first), at = first * rows.model;
    const layout::ConstElements in = rows.hidden.from(at);
    if (tiles)
      stages.push_back(std::make_unique<MlpStage<GatedTiles>>(block, in, count, rows.model, outlet.from(at), threads));
    else
      stages.push_back(
          std::make_unique<MlpStage<GatedStreams>>(block, in, count, rows.model, outlet.from(at), threads));
  }
}

}  // namespace

void add_stages(Stages& stages, const AttentionBlock& block, const LayerRows& rows, int threads) {
  add_attention(stages, block, rows, {rows.out, rows.hidden, block.ranks}, threads);
}

void add_stages(Stages& stages, const MlpBlock& block, const LayerRows& rows, int threads) {
  add_mlp(stages, block, rows, {rows.out, rows.hidden, block.ranks}, threads);
}

// The half that comes first leaves its term as floats. Alone it has taken the residual in already. Among ranks the one
// that is shared comes last and sends both terms at once; one that every rank has whole is brought by rank 0.
void add_parallel_stages(Stages& stages, const AttentionBlock& attention, const MlpBlock& mlp, const LayerRows& rows,
                         float* terms, int threads) {
  const comm::Routes* ranks = attention.ranks ? attention.ranks : mlp.ranks;
  if (!ranks) {
    add_mlp(stages, mlp, rows, {floats(terms), rows.hidden}, threads);
    add_attention(stages, attention, rows, {rows.out, floats(terms)}, threads);
    return;
  }
  const bool both = attention.ranks && mlp.ranks;
  const Outlet first{floats(terms)}, last{rows.out, rows.hidden, ranks, both || ranks->rank() == 0 ? terms : nullptr};
  if (attention.ranks) {
    if (last.term) add_mlp(stages, mlp, rows, first, threads);
    add_attention(stages, attention, rows, last, threads);
  } else {
    add_attention(stages, attention, rows, first, threads);
    add_mlp(stages, mlp, rows, last, threads);
  }
}

}  // namespace torch_cpullm::drivers
