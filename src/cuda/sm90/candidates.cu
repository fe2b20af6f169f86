#include "cuda/sm90/forward.cuh"
namespace tessera::cuda::sm90 {
std::span<const ForwardVariant> cand64();
std::span<const ForwardVariant> cand128();
std::span<const ForwardVariant> forward_candidates() {
  static const std::vector<ForwardVariant> kAll = [] {
    std::vector<ForwardVariant> all;
    for (auto s : {cand64(), cand128()}) all.insert(all.end(), s.begin(), s.end());
    return all;
  }();
  return kAll;
}
}
