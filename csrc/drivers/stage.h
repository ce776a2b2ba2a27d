// Work of a whole team that was laid out beforehand: what one parallel region does, stage after stage.
//
// A decoder's layers are stages of one region in a decode step (bindings/layers.cpp). A region for each half of a layer
// took 2 to 3 % of a token: waking the team, and checks and cuts made anew between two of them, from cold code.
#pragma once
#include <memory>
#include <vector>

#include "runtime/parallel.h"
#include "runtime/scratch.h"

namespace torch_cpullm::drivers {

class Stage {
 public:
  Stage() = default;
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;
  virtual ~Stage() = default;

  // Takes the working memory, which is the stage's own only while it runs: all stages lie on the same bytes.
  virtual void plan(runtime::Carver& carver) = 0;
  // Every member of the team calls this; what it gives is complete after the next barrier.
  virtual void run(const runtime::Team& team) = 0;
};

using Stages = std::vector<std::unique_ptr<Stage>>;

// All of them in order.
void run_stages(const Stages& stages, int threads);

}  // namespace torch_cpullm::drivers
