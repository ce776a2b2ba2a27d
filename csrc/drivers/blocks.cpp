#include "drivers/blocks.h"

#include <algorithm>

namespace torch_cpullm::drivers {
namespace {

using layout::floats;
using runtime::Carver;
using runtime::Range;
using runtime::Team;

// The normed row if there is a norm, else the row itself.
layout::ConstElements apply_norm(const kernels::RowwiseKernels& kernels, const Norm& norm, layout::ConstElements x,
                                 int64_t n, float* out) {
  if (!norm.weight.data) return x;
  kernels.rms_norm(x, norm.weight, norm.offset, norm.eps, n, out);
  return floats(out);
}

// This member's share of the rows, normed and then prepared. With fewer rows than members each norms the row for
// itself and prepares its part of it: the norm of one row is cheaper than another barrier.
void prepare_normed(const Team& team, const kernels::RowwiseKernels& kernels, const Norm& norm,
                    layout::ConstElements hidden, int64_t model, float* normed, int64_t rows,
                    const PreparedRows& input) {
  float* own = normed + team.rank * model;
  const bool shared = rows < team.size;
  const Range mine = shared ? Range{0, rows} : team.share(rows), columns = shared ? input.share(team) : Range{0, model};
  for (int64_t row = mine.begin; row < mine.end; ++row)
    input.prepare(row, columns, apply_norm(kernels, norm, hidden.from(row * model), model, own).from(columns.begin));
}

// The last projection of a block with what follows it: straight into `out` with the residual added, or, where a norm
// stands between (sandwich norms), through a buffer.
class Projection {
 public:
  Projection(const layout::PackedView& weight, const Norm& norm, int64_t rows, int threads)
      : input_(weight, rows), linear_(weight, rows, threads), norm_(norm), rows_(rows), columns_(weight.columns) {}

  void plan(Carver& carver) {
    input_.plan(carver);
    linear_.plan(carver);
    if (norm_.weight.data) buffer_ = carver.take<float>(rows_ * columns_);
  }
  const PreparedRows& input() const { return input_; }

  void run(const Team& team, layout::ConstElements residual, layout::Elements out) {
    if (!norm_.weight.data) return linear_.multiply(team, input_, {out, columns_, residual.data});
    linear_.multiply(team, input_, {floats(buffer_), columns_});
    team.barrier();
    const kernels::RowwiseKernels& kernels = kernels::rowwise_kernels();
    const Range mine = team.share(rows_);
    for (int64_t row = mine.begin; row < mine.end; ++row) {
      float* normed = buffer_ + row * columns_;
      kernels.rms_norm(floats(normed), norm_.weight, norm_.offset, norm_.eps, columns_, normed);
      kernels.add(normed, residual.from(row * columns_), columns_, out.from(row * columns_));
    }
  }

 private:
  PreparedRows input_;
  Linear linear_;
  Norm norm_;
  int64_t rows_, columns_;
  float* buffer_ = nullptr;
};

// Head norms and rope on q and k of one row, then its k and v into the pages.
void finish_qkv_row(const AttentionBlock& block, const kernels::RowwiseKernels& kernels, int64_t row, float* qkv) {
  const AttentionProblem& problem = block.attention;
  const layout::LayerPages& pages = problem.pages;
  const int64_t channels = pages.channels, b = row / problem.tokens, t = row % problem.tokens;
  const float* cos = block.cos + b * block.rope_batch_stride + t * block.rotary;
  const float* sin = block.sin + b * block.rope_batch_stride + t * block.rotary;
  for (int64_t head = 0; head < problem.heads + pages.heads; ++head) {
    float* x = qkv + head * channels;
    const Norm& norm = head < problem.heads ? block.query_norm : block.key_norm;
    if (norm.weight.data) kernels.rms_norm(floats(x), norm.weight, norm.offset, norm.eps, channels, x);
    kernels.rope(x, cos, sin, block.rotary);
  }
  const int64_t position = problem.past[b] + t;
  const int32_t page = problem.page_table[b * problem.table_stride + position / layout::kPageTokens];
  for (int64_t g = 0; g < pages.heads; ++g) {
    const float* key = qkv + (problem.heads + g) * channels;
    kernels.kv_store(key, key + pages.heads * channels, channels, pages.format, pages.head(page, g),
                     position % layout::kPageTokens);
  }
  if (t == problem.tokens - 1) pages.close(page, position, problem.past[b]);
}

}  // namespace

void run_attention_block(const AttentionBlock& block, layout::ConstElements hidden, int64_t model, layout::Elements out,
                         int threads) {
  AttentionProblem problem = block.attention;
  const int64_t rows = problem.batch * problem.tokens;
  const int64_t heads_width = problem.heads * problem.pages.channels;
  const kernels::RowwiseKernels& kernels = kernels::rowwise_kernels();
  PreparedRows input(block.qkv[0], rows);
  LinearGroup qkv(block.qkv, rows, threads);
  Attention attention(problem, threads);
  Projection projection(block.output, block.output_norm, rows, threads);
  float *normed = nullptr, *qkv_rows = nullptr, *attended = nullptr;
  runtime::with_scratch(
      [&](Carver& carver) {
        input.plan(carver);
        qkv.plan(carver);
        attention.plan(carver);
        projection.plan(carver);
        normed = carver.take<float>(threads * model);
        qkv_rows = carver.take<float>(rows * qkv.columns());
        attended = carver.take<float>(rows * heads_width);
        attention.bind(floats(qkv_rows), qkv.columns(), floats(attended), heads_width);
      },
      [&] {
        runtime::parallel(threads, [&](const Team& team) {
          const Range mine = team.share(rows);
          prepare_normed(team, kernels, block.input_norm, hidden, model, normed, rows, input);
          team.barrier();
          qkv.multiply(team, input, {floats(qkv_rows), qkv.columns()});
          team.barrier();
          for (int64_t row = mine.begin; row < mine.end; ++row)
            finish_qkv_row(block, kernels, row, qkv_rows + row * qkv.columns());
          team.barrier();
          attention.run(team);
          team.barrier();
          projection.input().prepare_all(team, floats(attended));
          team.barrier();
          projection.run(team, hidden, out);
        });
      });
}

namespace {

template <class Gated>
void run_mlp_rows(const MlpBlock& block, layout::ConstElements hidden, int64_t rows, int64_t model,
                  layout::Elements out, int threads) {
  const kernels::RowwiseKernels& kernels = kernels::rowwise_kernels();
  PreparedRows input(block.gated.gate_up[0], rows);
  Gated gated(block.gated, rows, threads);
  Projection projection(block.down, block.output_norm, rows, threads);
  float* normed = nullptr;
  runtime::with_scratch(
      [&](Carver& carver) {
        input.plan(carver);
        gated.plan(carver);
        projection.plan(carver);
        normed = carver.take<float>(threads * model);
      },
      [&] {
        runtime::parallel(threads, [&](const Team& team) {
          prepare_normed(team, kernels, block.input_norm, hidden, model, normed, rows, input);
          team.barrier();
          gated.run(team, input, projection.input());
          team.barrier();
          projection.run(team, hidden, out);
        });
      });
}

}  // namespace

void run_mlp_block(const MlpBlock& block, layout::ConstElements hidden, int64_t rows, int64_t model,
                   layout::Elements out, int threads) {
  const bool tiles = GatedTiles::suit(block.gated, rows, threads);
  const int64_t most = tiles ? GatedTiles::kMostRows : GatedStreams::kMostRows;
  const auto run = tiles ? run_mlp_rows<GatedTiles> : run_mlp_rows<GatedStreams>;
  for (int64_t first = 0; first < rows; first += most)
    run(block, hidden.from(first * model), std::min(most, rows - first), model, out.from(first * model), threads);
}

}  // namespace torch_cpullm::drivers
