#include "drivers/blocks.h"

#include <algorithm>
#include <deque>
#include <limits>

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

// Rows of a block whose terms ranks send at once. The same on all ranks, whose kernels may work on more.
constexpr int64_t kMostSentRows = GatedStreams::kMostRows;
static_assert(kMostSentRows <= GatedTiles::kMostRows);

int64_t most_rows(const comm::Routes* ranks, int64_t model, layout::Element type) {
  if (!ranks) return std::numeric_limits<int64_t>::max();
  return std::min(kMostSentRows, ranks->most_bytes() / (model * comm::bytes_of(comm::type_of(type))));
}

// The last projection of a block with what follows it, for rows that go together.
//
//   alone                 product + residual -> out
//   of ranks              product -> part of this rank;  sum of parts + residual -> out
//   with a norm between   product, or sum of parts -> floats;  norm -> + residual -> out       (sandwich norms)
class Projection {
 public:
  // `type`: of the block's rows, which ranks send as well.
  Projection(const layout::PackedView& weight, const Norm& norm, int64_t rows, int threads, const comm::Routes* ranks,
             layout::Element type)
      : input_(weight, rows),
        linear_(weight, rows, threads),
        norm_(norm),
        rows_(rows),
        columns_(weight.columns),
        type_(type),
        message_{comm::Operation::all_reduce, comm::type_of(type), rows * weight.columns},
        group_(ranks ? &ranks->of(message_.bytes()) : nullptr) {}

  void plan(Carver& carver) {
    input_.plan(carver);
    linear_.plan(carver);
    if (norm_.weight.data) buffer_ = carver.take<float>(rows_ * columns_);
  }
  int64_t rows() const { return rows_; }
  const PreparedRows& input() const { return input_; }
  // Ahead of the last barrier before `run`.
  void begin(const Team& team) {
    if (group_ && team.rank == 0) part_ = group_->begin(message_.bytes());
  }
  void run(const Team& team, layout::ConstElements residual, layout::Elements out) {
    const bool between = norm_.weight.data != nullptr;
    if (group_)
      sum_ranks(team, between ? layout::ConstElements{nullptr, layout::Element::f32} : residual,
                between ? floats(buffer_) : out);
    else
      linear_.multiply(team, input_,
                       between ? Destination{floats(buffer_), columns_} : Destination{out, columns_, residual.data});
    if (!between) return;
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
  void sum_ranks(const Team& team, layout::ConstElements residual, layout::Elements out) {
    if (part_) linear_.multiply(team, input_, {{part_, type_}, columns_});
    comm::add_parts(team, message_, group_->run(team, message_), residual, out);
  }

  PreparedRows input_;
  Linear linear_;
  Norm norm_;
  int64_t rows_, columns_;
  layout::Element type_;
  comm::Message message_;
  comm::Group* group_;
  std::byte* part_ = nullptr;
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

class AttentionStage final : public Stage {
 public:
  AttentionStage(const AttentionBlock& block, layout::ConstElements hidden, int64_t model, layout::Elements out,
                 int threads)
      : block_(block),
        hidden_(hidden),
        out_(out),
        model_(model),
        rows_(block.attention.batch * block.attention.tokens),
        threads_(threads),
        input_(block.qkv[0], rows_),
        qkv_(block.qkv, rows_, threads),
        attention_(block.attention, threads) {
    const int64_t most = most_rows(block.ranks, model, out.type);
    for (int64_t first = 0; first < rows_; first += most)
      projections_.emplace_back(block.output, block.output_norm, std::min(most, rows_ - first), threads, block.ranks,
                                out.type);
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
    prepare_normed(team, kernels, block_.input_norm, hidden_, model_, normed_, rows_, input_);
    team.barrier();
    qkv_.multiply(team, input_, {floats(qkv_rows_), qkv_.columns()});
    team.barrier();
    for (int64_t row = mine.begin; row < mine.end; ++row)
      finish_qkv_row(block_, kernels, row, qkv_rows_ + row * qkv_.columns());
    team.barrier();
    attention_.run(team);
    int64_t first = 0;
    for (Projection& projection : projections_) {
      team.barrier();
      projection.begin(team);
      projection.input().prepare_all(team, floats(attended_).from(first * block_.attention.heads * channels()));
      team.barrier();
      projection.run(team, hidden_.from(first * model_), out_.from(first * model_));
      first += projection.rows();
    }
  }

 private:
  int64_t channels() const { return block_.attention.pages.channels; }

  const AttentionBlock& block_;
  layout::ConstElements hidden_;
  layout::Elements out_;
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
  MlpStage(const MlpBlock& block, layout::ConstElements hidden, int64_t rows, int64_t model, layout::Elements out,
           int threads)
      : block_(block),
        hidden_(hidden),
        out_(out),
        model_(model),
        rows_(rows),
        threads_(threads),
        input_(block.gated.gate_up[0], rows),
        gated_(block.gated, rows, threads),
        projection_(block.down, block.output_norm, rows, threads, block.ranks, out.type) {}

  void plan(Carver& carver) override {
    input_.plan(carver);
    gated_.plan(carver);
    projection_.plan(carver);
    normed_ = carver.take<float>(threads_ * model_);
  }

  void run(const Team& team) override {
    prepare_normed(team, kernels::rowwise_kernels(), block_.input_norm, hidden_, model_, normed_, rows_, input_);
    team.barrier();
    projection_.begin(team);
    gated_.run(team, input_, projection_.input());
    team.barrier();
    projection_.run(team, hidden_, out_);
  }

 private:
  const MlpBlock& block_;
  layout::ConstElements hidden_;
  layout::Elements out_;
  int64_t model_, rows_;
  int threads_;
  PreparedRows input_;
  Gated gated_;
  Projection projection_;
  float* normed_ = nullptr;
};

}  // namespace

void add_stages(Stages& stages, const AttentionBlock& block, layout::ConstElements hidden, int64_t model,
                layout::Elements out, int threads) {
  stages.push_back(std::make_unique<AttentionStage>(block, hidden, model, out, threads));
}

void add_stages(Stages& stages, const MlpBlock& block, layout::ConstElements hidden, int64_t rows, int64_t model,
                layout::Elements out, int threads) {
  const bool tiles = GatedTiles::suit(block.gated, rows, threads);
  const int64_t most =
      std::min(tiles ? GatedTiles::kMostRows : GatedStreams::kMostRows, most_rows(block.ranks, model, out.type));
  for (int64_t first = 0; first < rows; first += most) {
    const int64_t count = std::min(most, rows - first);
    const layout::ConstElements in = hidden.from(first * model);
    const layout::Elements to = out.from(first * model);
    if (tiles)
      stages.push_back(std::make_unique<MlpStage<GatedTiles>>(block, in, count, model, to, threads));
    else
      stages.push_back(std::make_unique<MlpStage<GatedStreams>>(block, in, count, model, to, threads));
  }
}

}  // namespace torch_cpullm::drivers
