// What the machine can do at best, measured: multiply-adds held in registers, and copying memory.
#pragma once

#include <string>

#include "bench/team.hpp"

namespace tessera::cli::bench {

/// Instruction sets whose multiply-add rate is measured. `portable` is what the compiler targets by
/// default; `amx` multiplies bf16 in tiles, `avx512_bf16` pairs of bf16 in vectors, the others f32
/// in vectors.
enum class Isa { portable, avx2, avx512, avx512_bf16, amx };

/// "portable", "avx2", "avx512", "avx512_bf16" or "amx".
const char* name_of(Isa isa);

/// Whether this build and this CPU have it.
bool available(Isa isa);

/// The widest available one for f32.
Isa best_isa();

/// The instruction set a row of the table is written in, by its name ("cpu_avx2" …): its own, or
/// portable for rows that name none, such as "reference".
Isa isa_of_row(const std::string& row);

/// GFLOP/s of the team's threads that multiply and add at the same time in registers alone, in
/// one burst of about `seconds` on each. A multiply-add counts two operations.
double multiply_add_gflops(Isa isa, Team& team, double seconds);

/// Bytes read plus bytes written per second, in GB/s, of the team's threads that copy between
/// buffers of their own which together hold 512 MiB; the best of several passes.
double copy_gbytes_per_second(Team& team);

}  // namespace tessera::cli::bench
