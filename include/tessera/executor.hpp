// How the CPU backend gets its threads.
#pragma once

#include <memory>

#include "tessera/export.h"

namespace tessera {

/// Runs a handful of long tasks side by side. Implement it to put Tessera's CPU work on another
/// runtime's threads (PyTorch's, OpenMP's, a server's pool) instead of its own pool.
class TESSERA_API Executor {
 public:
  virtual ~Executor() = default;

  /// The number of tasks that can usefully run at the same time, at least 1.
  virtual int concurrency() const = 0;

  /// Calls `task(context, i)` exactly once for each i in [0, count) and returns when all calls have
  /// returned. Tasks may run in any order, at the same time or one after another; Tessera's are
  /// correct either way. Tasks do not throw. May be called from many threads at once; not called
  /// for work that makes a single task, which the caller's thread does.
  virtual void parallel(int count, void (*task)(void* context, int index), void* context) = 0;
};

/// A pool of `threads` threads (the caller of `parallel` is one of them); 0 means one per CPU this
/// process may use. A call that finds the pool busy with another caller runs its tasks itself, so
/// concurrent callers neither wait for nor oversubscribe one another.
TESSERA_API std::unique_ptr<Executor> make_thread_pool(int threads = 0);

/// The pool that plans use when the caller names no executor: made on first use with one thread per
/// CPU this process may use (or `TESSERA_THREADS`), alive until the process ends.
TESSERA_API Executor& default_executor();

}  // namespace tessera
