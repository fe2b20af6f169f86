#include "api/overlap.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>

namespace tessera {
namespace {

struct Term {
  std::int64_t stride = 0;  // bytes, > 0
  std::int64_t last = 0;    // largest index
};

/// Sums of stride · index, 0 ≤ index ≤ last.
struct Terms {
  std::array<Term, 2 * kMaxRank + 2> term{};
  int count = 0;
  std::int64_t base = 0;

  void add(std::int64_t stride, std::int64_t last) {
    if (stride == 0 || last == 0) return;
    if (stride < 0) {  // index → last − index
      base += stride * last;
      stride = -stride;
    }
    term[count++] = {stride, last};
  }
};

bool is_empty(const TensorView& view) {
  for (int d = 0; d < view.rank; ++d) {
    if (view.size[d] == 0) return true;
  }
  return view.rank == 0 || view.data == nullptr;
}

/// Whether the terms from `at` on can sum to `target`. With strides that nest (each at least the
/// extent of all smaller ones) at most two indices per dimension are tried; `budget` bounds what
/// stranger strides can cost, and running out of it counts as "yes".
bool can_sum_to(const Terms& terms, int at, std::int64_t target, int& budget) {
  if (target == 0) return true;
  if (target < 0 || at == terms.count) return false;
  if (--budget < 0) return true;
  std::int64_t rest = 0;
  for (int t = at + 1; t < terms.count; ++t) rest += terms.term[t].stride * terms.term[t].last;
  const Term& term = terms.term[at];
  const std::int64_t high = std::min(term.last, target / term.stride);
  const std::int64_t low = target > rest ? (target - rest + term.stride - 1) / term.stride : 0;
  for (std::int64_t index = high; index >= low; --index) {
    if (can_sum_to(terms, at + 1, target - index * term.stride, budget)) return true;
  }
  return false;
}

void sort_descending(Terms& terms) {
  std::sort(terms.term.begin(), terms.term.begin() + terms.count,
            [](const Term& x, const Term& y) { return x.stride > y.stride; });
}

constexpr int kBudget = 100000;

}  // namespace

bool views_overlap(const TensorView& a, const TensorView& b) {
  if (is_empty(a) || is_empty(b) || !(a.device == b.device)) return false;
  // Byte of a = byte of b  ⇔  Σ a's terms + byte_a − Σ b's terms − byte_b = b.data − a.data.
  Terms terms;
  for (int d = 0; d < a.rank; ++d) terms.add(a.stride[d] * size_of(a.dtype), a.size[d] - 1);
  for (int d = 0; d < b.rank; ++d) terms.add(-b.stride[d] * size_of(b.dtype), b.size[d] - 1);
  terms.add(1, size_of(a.dtype) - 1);
  terms.add(-1, size_of(b.dtype) - 1);
  sort_descending(terms);
  const std::int64_t distance = static_cast<const char*>(b.data) - static_cast<const char*>(a.data);
  int budget = kBudget;
  return can_sum_to(terms, 0, distance - terms.base, budget);
}

bool overlaps_itself(const TensorView& view) {
  if (is_empty(view)) return false;
  Terms terms;
  for (int d = 0; d < view.rank; ++d) {
    if (view.size[d] > 1 && view.stride[d] == 0) return true;
    terms.add(view.stride[d], view.size[d] - 1);
  }
  sort_descending(terms);
  std::int64_t extent = 0;  // of the dimensions inside the current one
  for (int t = terms.count - 1; t >= 0; --t) {
    if (terms.term[t].stride <= extent) return true;
    extent += terms.term[t].stride * terms.term[t].last;
  }
  return false;
}

}  // namespace tessera
