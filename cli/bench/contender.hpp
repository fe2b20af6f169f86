// The things that are timed: a plan of Tessera's, or standard attention, on shared tensors.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "bench/ceiling.hpp"
#include "bench/problem.hpp"
#include "host_tensor.hpp"
#include "tessera/attention.hpp"

namespace tessera::cli::bench {

/// The tensors of a case: inputs filled with normal numbers, outputs with zeros.
struct Tensors {
  explicit Tensors(const Case& problem);

  Inputs inputs() const;
  Outputs outputs() const;
  OutputGradients d_outputs() const;
  InputGradients d_inputs() const;

  HostTensor q, k, v, o, lse, d_o, d_q, d_k, d_v;
};

/// The block mask of a choice; absent for Pattern::dense. Throws Error as BlockMask's builders say.
std::optional<BlockMask> build_mask(const Case& problem, const MaskChoice& choice);

/// Computes the o and lse that a backward case reads. `mask` may be null. Throws Error.
void run_forward(const Case& problem, const BlockMask* mask, Tensors& tensors);

/// One variant of a case, ready to run again and again.
class Contender {
 public:
  virtual ~Contender() = default;

  /// Computes the case's pass once. Throws Error.
  virtual void run() = 0;

  /// The implementation: a row of the table, or "standard".
  virtual std::string name() const = 0;
  /// The instruction set whose ceiling it is held against.
  virtual Isa isa() const = 0;
  /// Bytes of memory set aside for the computation beyond inputs and outputs.
  virtual std::int64_t workspace_bytes() const = 0;
};

/// Makes a variant ready; `mask` is its block mask or null. Both arguments' memory must outlive the
/// result. Throws Error if no row of the table accepts it.
std::unique_ptr<Contender> make_contender(const Case& problem, const Variant& variant,
                                          const BlockMask* mask, Tensors& tensors);

/// Why a row that was asked for by name is left out of a case in the variant's precision, in one
/// line; empty if it is not.
std::string row_refusal(const Case& problem, const Variant& variant, const Tensors& tensors);

/// Why standard attention is left out of a case here, in one line; empty if it is not.
std::string standard_refusal(const Case& problem);

}  // namespace tessera::cli::bench
