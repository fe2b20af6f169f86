// The C interface: quantisation schemes and adaptive plans.
#include "api/c_support.hpp"

using tessera::AdaptivePlan;
using tessera::formatted;
using tessera::Precision;
using tessera::PvFormat;
using tessera::Quantization;
using tessera::Result;
using tessera::ScaleGranularity;
using tessera::Smoothing;
using tessera::SmoothQ;
using tessera::Status;
using namespace tessera::c;

static_assert(TESSERA_SCALES_PER_TENSOR == static_cast<int>(ScaleGranularity::tensor));
static_assert(TESSERA_SCALES_PER_BLOCK == static_cast<int>(ScaleGranularity::block));
static_assert(TESSERA_SCALES_PER_WARP == static_cast<int>(ScaleGranularity::warp));
static_assert(TESSERA_SCALES_PER_THREAD == static_cast<int>(ScaleGranularity::thread));
static_assert(TESSERA_SCALES_PER_TOKEN == static_cast<int>(ScaleGranularity::token));
static_assert(TESSERA_SMOOTH_Q_NONE == static_cast<int>(SmoothQ::none));
static_assert(TESSERA_SMOOTH_Q_PER_TENSOR == static_cast<int>(SmoothQ::tensor));
static_assert(TESSERA_SMOOTH_Q_PER_BLOCK == static_cast<int>(SmoothQ::block));
static_assert(TESSERA_SMOOTHING_OFF == static_cast<int>(Smoothing::off));
static_assert(TESSERA_SMOOTHING_ON == static_cast<int>(Smoothing::on));
static_assert(TESSERA_PV_FP8 == static_cast<int>(PvFormat::fp8));
static_assert(TESSERA_PV_HALF == static_cast<int>(PvFormat::half));

namespace tessera::c {

Status read_quantization(const tessera_quantization* from, Quantization& to) {
  if (from == nullptr) return {};
  tessera_quantization q{};
  TESSERA_C_RETURN_IF_ERROR(read_struct(from, "quantization", "tessera_quantization", q));
  TESSERA_C_RETURN_IF_ERROR(read_enum(q.granularity, ScaleGranularity::token,
                                      "quantization.granularity", "tessera_scale_granularity",
                                      to.granularity));
  TESSERA_C_RETURN_IF_ERROR(read_enum(q.smooth_q, SmoothQ::block, "quantization.smooth_q",
                                      "tessera_smooth_q", to.smooth_q));
  TESSERA_C_RETURN_IF_ERROR(read_enum(q.smooth_k, Smoothing::on, "quantization.smooth_k",
                                      "tessera_smoothing", to.smooth_k));
  TESSERA_C_RETURN_IF_ERROR(read_enum(q.smooth_v, Smoothing::on, "quantization.smooth_v",
                                      "tessera_smoothing", to.smooth_v));
  TESSERA_C_RETURN_IF_ERROR(
      read_enum(q.pv, PvFormat::half, "quantization.pv", "tessera_pv_format", to.pv));
  if (q.reserved != 0) {
    return invalid(formatted("quantization.reserved: {}, expected 0", q.reserved));
  }
  return {};
}

namespace {

tessera_status make_plan(const char* text, const char* name, const char* model,
                         Result<AdaptivePlan> (*make)(const std::string&, const std::string&),
                         tessera_adaptive_plan** plan) {
  return guarded([&]() -> Status {
    TESSERA_C_RETURN_IF_ERROR(require(plan, "plan", "a place for the tessera_adaptive_plan"));
    TESSERA_C_RETURN_IF_ERROR(require(text, name, "a string"));
    Result<AdaptivePlan> made = make(text, model == nullptr ? "" : model);
    if (!made.ok()) return made.status();
    *plan = new tessera_adaptive_plan{std::move(made).value()};
    return {};
  });
}

}  // namespace
}  // namespace tessera::c

tessera_status tessera_adaptive_plan_load(const char* path, const char* model,
                                          tessera_adaptive_plan** plan) {
  return make_plan(path, "path", model, AdaptivePlan::load, plan);
}

tessera_status tessera_adaptive_plan_parse(const char* json, const char* model,
                                           tessera_adaptive_plan** plan) {
  return make_plan(json, "json", model, AdaptivePlan::parse, plan);
}

tessera_status tessera_adaptive_plan_choose(const tessera_adaptive_plan* plan, int64_t layer,
                                            int64_t step, int32_t* precision) {
  return guarded([&]() -> Status {
    TESSERA_C_RETURN_IF_ERROR(require(plan, "plan", "a tessera_adaptive_plan"));
    TESSERA_C_RETURN_IF_ERROR(require(precision, "precision", "a place for the precision"));
    const Result<AdaptivePlan::Choice> choice = plan->plan.choose(layer, step);
    if (!choice.ok()) return choice.status();
    *precision = static_cast<std::int32_t>(choice->precision);
    return {};
  });
}

void tessera_adaptive_plan_destroy(tessera_adaptive_plan* plan) { delete plan; }
