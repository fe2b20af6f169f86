// What automatic pieces of the scheme mean, and names.
#include "tessera/quant.hpp"

namespace tessera {

Quantization resolved(Precision precision, const Quantization& from) {
  Quantization q = from;
  if (q.granularity == ScaleGranularity::automatic) q.granularity = ScaleGranularity::thread;
  if (q.smooth_q == SmoothQ::automatic) {
    q.smooth_q = precision == Precision::sage4 ? SmoothQ::tensor : SmoothQ::none;
  }
  if (q.smooth_k == Smoothing::automatic) q.smooth_k = Smoothing::on;
  if (q.smooth_v == Smoothing::automatic) q.smooth_v = Smoothing::off;
  if (q.pv == PvFormat::automatic) q.pv = PvFormat::fp8;
  return q;
}

const char* name_of(Precision precision) {
  switch (precision) {
    case Precision::exact:
      return "exact";
    case Precision::sage8:
      return "sage8";
    case Precision::sage4:
      return "sage4";
    case Precision::adaptive:
      return "adaptive";
  }
  return "unknown";
}

const char* name_of(ScaleGranularity granularity) {
  switch (granularity) {
    case ScaleGranularity::automatic:
      return "automatic";
    case ScaleGranularity::tensor:
      return "tensor";
    case ScaleGranularity::block:
      return "block";
    case ScaleGranularity::warp:
      return "warp";
    case ScaleGranularity::thread:
      return "thread";
    case ScaleGranularity::token:
      return "token";
  }
  return "unknown";
}

const char* name_of(SmoothQ smooth_q) {
  switch (smooth_q) {
    case SmoothQ::automatic:
      return "automatic";
    case SmoothQ::none:
      return "none";
    case SmoothQ::tensor:
      return "tensor";
    case SmoothQ::block:
      return "block";
  }
  return "unknown";
}

const char* name_of(PvFormat pv) {
  switch (pv) {
    case PvFormat::automatic:
      return "automatic";
    case PvFormat::fp8:
      return "fp8";
    case PvFormat::half:
      return "half";
  }
  return "unknown";
}

}  // namespace tessera
