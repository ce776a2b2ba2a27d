#include "drivers/stage.h"

namespace torch_cpullm::drivers {

void run_stages(const Stages& stages, int threads) {
  runtime::with_scratch(
      [&](runtime::Carver& carver) {
        for (const auto& stage : stages) {
          carver.restart();
          stage->plan(carver);
        }
      },
      [&] {
        runtime::parallel(threads, [&](const runtime::Team& team) {
          for (const auto& stage : stages) {
            if (stage != stages.front()) team.barrier();
            stage->run(team);
          }
        });
      });
}

}  // namespace torch_cpullm::drivers
