#include "api/tensor_checker.hpp"

#include <algorithm>
#include <cstdlib>
#include <limits>

#include "api/validate.hpp"
#include "core/format.hpp"

namespace tessera {

std::string shape_of(const TensorView& view) {
  std::string s = "[";
  for (int d = 0; d < view.rank; ++d) s += formatted("{}{}", d ? "," : "", view.size[d]);
  return s + "]";
}

bool Dimension::accepts(std::int64_t actual) const {
  const bool equal = actual == size;
  switch (extent) {
    case Extent::equal:
      return equal;
    case Extent::equal_or_one:
      return equal || actual == 1;
    case Extent::at_least:
      return actual >= size;
  }
  return false;
}

std::string Dimension::expected() const {
  switch (extent) {
    case Extent::equal_or_one:
      return size == 1 ? "1" : formatted("{}|1", size);
    case Extent::at_least:
      return formatted("≥{}", size);
    case Extent::equal:
      break;
  }
  return formatted("{}", size);
}

Status check_layout(const char* name, const TensorView& view) {
  if (view.rank < 1 || view.rank > kMaxRank) {
    return invalid(formatted("{}: rank {}, expected 1 to {}", name, view.rank, kMaxRank));
  }
  if (static_cast<unsigned>(view.dtype) > static_cast<unsigned>(DType::boolean)) {
    return invalid(formatted("{}: dtype {}, expected one of Tessera's", name,
                             static_cast<unsigned>(view.dtype)));
  }
  std::int64_t elements = 1;
  std::int64_t reach = size_of(view.dtype);
  for (int d = 0; d < view.rank; ++d) {
    const std::int64_t size = view.size[d];
    if (size < 0) {
      return invalid(formatted("{}: shape {}, expected sizes of at least 0", name, shape_of(view)));
    }
    std::int64_t step = 0;
    if (__builtin_mul_overflow(elements, std::max<std::int64_t>(size, 1), &elements) ||
        __builtin_mul_overflow(elements, size_of(view.dtype), &step) ||
        view.stride[d] == std::numeric_limits<std::int64_t>::min() ||
        __builtin_mul_overflow(std::max<std::int64_t>(size - 1, 0), std::llabs(view.stride[d]),
                               &step) ||
        __builtin_mul_overflow(step, size_of(view.dtype), &step) ||
        __builtin_add_overflow(reach, step, &reach)) {
      return invalid(formatted("{}: shape {} with its strides, expected bytes that fit 64 bits",
                               name, shape_of(view)));
    }
  }
  const int last = view.rank - 1;
  if (view.size[last] > 1 && view.stride[last] != 1) {
    return invalid(formatted("{}: last stride {}, expected 1", name, view.stride[last]));
  }
  return {};
}

namespace {

Status check_block_mask_shape(const Problem& problem, const BlockMaskView& mask) {
  const auto wrong = [](const char* what, std::int64_t value, const std::string& expected) {
    return invalid(formatted("block_mask: {} {}, expected {}", what, value, expected));
  };
  if (mask.batch != 1 && mask.batch != problem.batch) {
    return wrong("batch", mask.batch, formatted("1 or {}", problem.batch));
  }
  if (mask.heads != 1 && mask.heads != problem.heads_q) {
    return wrong("heads", mask.heads, formatted("1 or {}", problem.heads_q));
  }
  if (!problem.varlen && mask.seq_q != problem.seq_q) {
    return wrong("seq_q", mask.seq_q, formatted("{}", problem.seq_q));
  }
  if (!problem.varlen && mask.seq_kv != problem.seq_kv) {
    return wrong("seq_kv", mask.seq_kv, formatted("{}", problem.seq_kv));
  }
  for (std::int64_t block : {mask.block_q, mask.block_kv}) {
    if (block <= 0 || block % 16 != 0) {
      return wrong("block size", block, "a positive multiple of 16");
    }
  }
  const std::int64_t q_blocks = (mask.seq_q + mask.block_q - 1) / mask.block_q;
  const std::int64_t kv_blocks = (mask.seq_kv + mask.block_kv - 1) / mask.block_kv;
  if (mask.q_blocks != q_blocks) return wrong("q_blocks", mask.q_blocks, formatted("{}", q_blocks));
  if (mask.kv_blocks != kv_blocks) {
    return wrong("kv_blocks", mask.kv_blocks, formatted("{}", kv_blocks));
  }
  if (!(mask.device == problem.device)) {
    return invalid(formatted("block_mask: device {}:{}, expected q's {}:{}",
                             name_of(mask.device.type), mask.device.index,
                             name_of(problem.device.type), problem.device.index));
  }
  return {};
}

}  // namespace

Status TensorChecker::check(const char* name, const TensorView& view,
                            std::initializer_list<DType> dtypes,
                            std::initializer_list<Dimension> expected) const {
  TESSERA_RETURN_IF_ERROR(check_layout(name, view));
  bool shape_ok = view.rank == static_cast<int>(expected.size());
  int d = 0;
  for (const Dimension& dimension : expected) {
    shape_ok = shape_ok && dimension.accepts(view.size[d]);
    ++d;
  }
  if (!shape_ok) {
    std::string wanted;
    for (const Dimension& dimension : expected) {
      wanted += (wanted.empty() ? "" : ",") + dimension.expected();
    }
    return invalid(formatted("{}: shape {}, expected [{}]", name, shape_of(view), wanted));
  }
  bool dtype_ok = false;
  std::string names;
  for (DType dtype : dtypes) {
    dtype_ok = dtype_ok || view.dtype == dtype;
    const std::string one = name_of(dtype);
    if (names != one) names += (names.empty() ? "" : " or ") + one;
  }
  if (!dtype_ok) {
    return invalid(formatted("{}: dtype {}, expected {}", name, name_of(view.dtype), names));
  }
  if (!(view.device == problem_.device)) {
    return invalid(formatted("{}: device {}:{}, expected q's {}:{}", name,
                             name_of(view.device.type), view.device.index,
                             name_of(problem_.device.type), problem_.device.index));
  }
  return {};
}

Status TensorChecker::check_tokens(const char* name, const TensorView& view, std::int64_t heads,
                                   std::int64_t tokens, std::int64_t last) const {
  const DType dtype = problem_.dtype;
  if (problem_.varlen) return check(name, view, {dtype}, {{tokens}, {heads}, {last}});
  return check(name, view, {dtype}, {{problem_.batch}, {heads}, {tokens}, {last}});
}

Status TensorChecker::check_rows(const char* name, const TensorView& view) const {
  const DType dtype = problem_.dtype == DType::f64 ? DType::f64 : DType::f32;
  const Dimension heads{problem_.heads_q};
  const Dimension rows{problem_.seq_q};
  if (problem_.varlen) return check(name, view, {dtype}, {heads, rows});
  return check(name, view, {dtype}, {{problem_.batch}, heads, rows});
}

Status TensorChecker::check_scores(const char* name, const TensorView& view,
                                   std::initializer_list<DType> dtypes) const {
  const Extent batch_or_one = Extent::equal_or_one;
  // Packed: the longest lengths are known only when cu_seqlens are read (check_lengths).
  const bool packed = problem_.varlen;
  return check(name, view, dtypes,
               {{problem_.batch, batch_or_one},
                {problem_.heads_q, batch_or_one},
                {packed ? 0 : problem_.seq_q, packed ? Extent::at_least : Extent::equal_or_one},
                {packed ? 0 : problem_.seq_kv, packed ? Extent::at_least : Extent::equal}});
}

Status check_input_shapes(const Problem& p, const Inputs& in) {
  const TensorChecker checker(p);
  TESSERA_RETURN_IF_ERROR(checker.check_tokens("q", in.q, p.heads_q, p.seq_q, p.head_dim));
  TESSERA_RETURN_IF_ERROR(checker.check_tokens("k", in.k, p.heads_kv, p.seq_kv, p.head_dim));
  TESSERA_RETURN_IF_ERROR(checker.check_tokens("v", in.v, p.heads_kv, p.seq_kv, p.head_dim_v));
  const DType wide = p.dtype == DType::f64 ? DType::f64 : DType::f32;
  if (p.bias) TESSERA_RETURN_IF_ERROR(checker.check_scores("bias", in.bias, {p.dtype, wide}));
  if (p.mask) TESSERA_RETURN_IF_ERROR(checker.check_scores("mask", in.mask, {DType::boolean}));
  if (p.alibi) {
    if (in.alibi_slopes.rank == 2) {
      TESSERA_RETURN_IF_ERROR(
          checker.check("alibi_slopes", in.alibi_slopes, {DType::f32}, {{p.batch}, {p.heads_q}}));
    } else {
      TESSERA_RETURN_IF_ERROR(
          checker.check("alibi_slopes", in.alibi_slopes, {DType::f32}, {{p.heads_q}}));
    }
  }
  if (p.sink) {
    TESSERA_RETURN_IF_ERROR(checker.check("sink", in.sink, {DType::f32}, {{p.heads_q}}));
  }
  const auto lengths = [&](const char* name, const TensorView& view, std::int64_t size) {
    return checker.check(name, view, {DType::i32}, {{size}});
  };
  if (p.q_lens) TESSERA_RETURN_IF_ERROR(lengths("q_lens", in.q_lens, p.batch));
  if (p.kv_lens) TESSERA_RETURN_IF_ERROR(lengths("kv_lens", in.kv_lens, p.batch));
  if (p.varlen) {
    TESSERA_RETURN_IF_ERROR(lengths("cu_seqlens_q", in.cu_seqlens_q, p.batch + 1));
    TESSERA_RETURN_IF_ERROR(lengths("cu_seqlens_k", in.cu_seqlens_k, p.batch + 1));
  }
  if (p.block_mask) TESSERA_RETURN_IF_ERROR(check_block_mask_shape(p, *in.block_mask));
  return {};
}

}  // namespace tessera
