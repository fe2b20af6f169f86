// The passes, and how their independent parts are spread over an executor.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/registry.hpp"

namespace tessera::reference {

/// Doubles of workspace one task needs.
std::size_t forward_doubles(const Problem& problem);
std::size_t backward_doubles(const Problem& problem);
std::size_t quantised_doubles(const Problem& problem);

/// Tasks that run side by side: no more than there are heads to share among them, which also keeps
/// the workspace of any problem within 64 bits.
std::int64_t concurrent_tasks(const Problem& problem);

/// arguments.workspace holds as many doubles for each of the concurrent tasks.
void forward(const Problem& problem, const Arguments& arguments);
void quantised_forward(const Problem& problem, const Arguments& arguments);
void backward(const Problem& problem, const Arguments& arguments);

/// Calls body(unit, memory) for every unit in [0, units); `memory` is `doubles` doubles that no
/// other call uses meanwhile. Units must not depend on one another.
template <typename Body>
void for_each_unit(const Problem& problem, const Arguments& arguments, std::int64_t units,
                   std::size_t doubles, const Body& body) {
  struct Context {
    const Body& body;
    double* memory;
    std::size_t doubles;
    std::int64_t units;
    std::int64_t tasks;
  };
  Context context{body, reinterpret_cast<double*>(arguments.workspace), doubles, units,
                  std::min(concurrent_tasks(problem), units)};
  arguments.executor->parallel(
      static_cast<int>(context.tasks),
      [](void* opaque, int task) {
        const Context& c = *static_cast<const Context*>(opaque);
        for (std::int64_t unit = task; unit < c.units; unit += c.tasks) {
          c.body(unit, c.memory + task * c.doubles);
        }
      },
      &context);
}

}  // namespace tessera::reference
