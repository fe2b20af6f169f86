#include "core/registry.hpp"

namespace tessera {

const Backend& backend_of(DeviceType device) {
  for (const Backend* backend : backends()) {
    if (backend->device == device) return *backend;
  }
  return *backends().front();
}

std::vector<Candidate> choose(const Problem& problem, std::string_view forced) {
  std::vector<Candidate> candidates;
  bool found = false;
  for (const Row& row : backend_of(problem.device.type).rows) {
    Candidate candidate{&row, {}, false};
    if (!forced.empty() && row.name != forced) {
      candidate.rejection = "another row is forced";
    } else {
      candidate.rejection = row.unavailable();
      if (candidate.rejection.empty()) candidate.rejection = row.reject(problem);
    }
    if (candidate.rejection.empty() && !found) candidate.chosen = found = true;
    candidates.push_back(std::move(candidate));
  }
  return candidates;
}

}  // namespace tessera
