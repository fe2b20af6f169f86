// Plans, kept: planning costs more than enqueuing a kernel, and a model asks for the same few
// problems again and again.
#pragma once

#include <tessera/tessera.h>

#include <array>
#include <cstddef>
#include <memory>
#include <string>

namespace tessera_torch {

/// A plan of one pass with its bytes of workspace.
class PlannedPass {
 public:
  PlannedPass(const tessera_attention& attention, const tessera_inputs& inputs,
              const tessera_plan_options& options);
  ~PlannedPass() { tessera_plan_destroy(plan_); }
  PlannedPass(const PlannedPass&) = delete;
  PlannedPass& operator=(const PlannedPass&) = delete;

  const tessera_plan* plan() const { return plan_; }
  size_t workspace_bytes() const { return workspace_bytes_; }

 private:
  tessera_plan* plan_ = nullptr;
  size_t workspace_bytes_ = 0;
};

/// The plan of a problem: a kept one, or a new one. Throws as `check` does. Plans depend on shapes,
/// dtypes, devices, the description, the options and TESSERA_FORCE, all of which are compared.
std::shared_ptr<const PlannedPass> find_plan(const tessera_attention& attention,
                                             const tessera_inputs& inputs,
                                             const tessera_plan_options& options);

/// The adaptive plan in a file: a kept one, or a new one if the file is new or has changed. It is
/// never destroyed, so that its address can stand for it in the key of a kept plan.
const tessera_adaptive_plan* find_adaptive_plan(const std::string& path);

}  // namespace tessera_torch
