#include "drivers/linear.h"

#include <algorithm>

namespace torch_cpullm::drivers {

using layout::kPanelColumns;
using runtime::Range;

namespace {

constexpr int64_t kMostPanels = 8;  // sums of 256 rows: 512 KiB

}  // namespace

Linear::Linear(const layout::PackedView& weight, int64_t rows, int threads)
    : panels_(weight), rows_(rows), threads_(threads), cut_(cut_of(weight, rows)) {
  if (cut_.run == panels_.blocks()) return;
  const int64_t tasks = panels_.count() * layout::ceil_div(rows, cut_.rows);
  chunk_ = std::clamp<int64_t>(tasks / (4 * threads), 1, kMostPanels);
}

void Linear::plan(runtime::Carver& carver) {
  sums_ = carver.take<float>(threads_ * chunk_ * cut_.rows * kPanelColumns);
}

void Linear::multiply_panels(Range panels, Range rows, const PreparedRows& x, int rank, const Destination& to) const {
  const PanelSums sums{sums_ + rank * chunk_ * cut_.rows * kPanelColumns, rows.end - rows.begin};
  for (int64_t block = 0; block < panels_.blocks(); block += cut_.run)
    panels_.add(panels, {block, std::min(block + cut_.run, panels_.blocks())}, x, rows.begin, sums);
  const Range columns{panels.begin * kPanelColumns, std::min(panels.end * kPanelColumns, panels_.columns())};
  panels_.finish(columns, {0, sums.rows}, sums, to.from(rows.begin, columns.begin));
}

void Linear::multiply(const runtime::Team& team, const PreparedRows& x, const Destination& to) {
  const int64_t panels = panels_.count();
  if (rows_ <= cut_.rows && chunk_ == 1) {
    // Each member reads its panels as one contiguous stream: decode lives from that. The last eighth is handed out one
    // by one, since cores are never equally fast: with fixed halves one of two waited 5 to 10 % of the time.
    const auto one = [&](int64_t panel) { multiply_panels({panel, panel + 1}, {0, rows_}, x, team.rank, to); };
    const int64_t fixed = panels - panels / 8;
    const Range mine = team.share(fixed);
    for (int64_t panel = mine.begin; panel < mine.end; ++panel) one(panel);
    for (int64_t panel = fixed + counter_.take(); panel < panels; panel = fixed + counter_.take()) one(panel);
    return;
  }
  const Grid grid{cut_, rows_, layout::ceil_div(panels, chunk_)};
  for (int64_t task = counter_.take(); task < grid.tasks(); task = counter_.take()) {
    const int64_t first = grid.chunk(task) * chunk_;
    multiply_panels({first, std::min(first + chunk_, panels)}, grid.rows_of(task), x, team.rank, to);
  }
}

LinearGroup::LinearGroup(const std::vector<layout::PackedView>& weights, int64_t rows, int threads)
    : members_(), offsets_() {
  for (const layout::PackedView& weight : weights) {
    members_.emplace_back(weight, rows, threads);
    offsets_.push_back(columns_);
    columns_ += weight.columns;
  }
}

void LinearGroup::plan(runtime::Carver& carver) {
  for (Linear& member : members_) member.plan(carver);
}

void LinearGroup::multiply(const runtime::Team& team, const PreparedRows& x, const Destination& to) {
  for (size_t i = 0; i < members_.size(); ++i) members_[i].multiply(team, x, to.from(0, offsets_[i]));
}

void run_linear(const layout::PackedView& weight, layout::ConstElements x, int64_t rows, layout::Elements y,
                int threads) {
  PreparedRows prepared(weight, rows);
  Linear linear(weight, rows, threads);
  runtime::with_scratch(
      [&](runtime::Carver& carver) {
        prepared.plan(carver);
        linear.plan(carver);
      },
      [&] {
        runtime::parallel(threads, [&](const runtime::Team& team) {
          prepared.prepare_all(team, x);
          team.barrier();
          linear.multiply(team, prepared, {y, weight.columns});
        });
      });
}

}  // namespace torch_cpullm::drivers
