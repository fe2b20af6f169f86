#include "check.h"

static void fill(float* x, int n, uint32_t seed) {
  for (int i = 0; i < n; ++i) {
    seed = seed * 1664525u + 1013904223u;
    x[i] = (float)(seed >> 8) / 8388608.0f - 1.0f;
  }
}

static void poison(float* x, int n) {
  for (int i = 0; i < n; ++i) x[i] = NAN;
}

void problem_init(struct problem* p) {
  memset(p, 0, sizeof *p);
  fill(p->q, kQ, 1);
  fill(p->k, kK, 2);
  fill(p->v, kV, 3);
  fill(p->d_o, kO, 4);
  poison(p->o, kO);
  poison(p->lse, kLse);
  poison(p->d_q, kQ);
  poison(p->d_k, kK);
  poison(p->d_v, kV);

  const int64_t q[] = {kBatch, kHeadsQ, kSeqQ, kHeadDim};
  const int64_t k[] = {kBatch, kHeadsKv, kSeqKv, kHeadDim};
  const int64_t v[] = {kBatch, kHeadsKv, kSeqKv, kHeadDimV};
  const int64_t o[] = {kBatch, kHeadsQ, kSeqQ, kHeadDimV};
  p->tq = tessera_contiguous(p->q, TESSERA_F32, 4, q);
  p->tk = tessera_contiguous(p->k, TESSERA_F32, 4, k);
  p->tv = tessera_contiguous(p->v, TESSERA_F32, 4, v);
  p->to = tessera_contiguous(p->o, TESSERA_F32, 4, o);
  p->tlse = tessera_contiguous(p->lse, TESSERA_F32, 3, q);
  p->td_o = tessera_contiguous(p->d_o, TESSERA_F32, 4, o);
  p->td_q = tessera_contiguous(p->d_q, TESSERA_F32, 4, q);
  p->td_k = tessera_contiguous(p->d_k, TESSERA_F32, 4, k);
  p->td_v = tessera_contiguous(p->d_v, TESSERA_F32, 4, v);

  p->attention = (tessera_attention){.struct_size = sizeof p->attention};
  p->inputs =
      (tessera_inputs){.struct_size = sizeof p->inputs, .q = &p->tq, .k = &p->tk, .v = &p->tv};
  p->outputs = (tessera_outputs){.struct_size = sizeof p->outputs, .o = &p->to, .lse = &p->tlse};
  p->d_outputs = (tessera_output_gradients){.struct_size = sizeof p->d_outputs, .d_o = &p->td_o};
  p->d_inputs = (tessera_input_gradients){
      .struct_size = sizeof p->d_inputs, .d_q = &p->td_q, .d_k = &p->td_k, .d_v = &p->td_v};
}

struct naive {
  double o[kO], lse[kLse], d_q[kQ], d_k[kK], d_v[kV];
  double probability[kScores]; /* of one head */
};

/* One (batch, query head): softmax rows first, then what the backward pass makes of them. */
static void naive_head(const struct problem* p, visible_fn visible, int b, int h,
                       struct naive* answer) {
  double* probability = answer->probability;
  const double scale = p->attention.has_scale ? p->attention.scale : 1.0 / sqrt((double)kHeadDim);
  const int head_q = b * kHeadsQ + h;
  const int head_kv = b * kHeadsKv + h / (kHeadsQ / kHeadsKv);
  for (int i = 0; i < kSeqQ; ++i) {
    const int row = head_q * kSeqQ + i;
    const float* q = p->q + row * kHeadDim;
    double* o = answer->o + row * kHeadDimV;
    double sum = 0;
    for (int j = 0; j < kSeqKv; ++j) {
      const float* k = p->k + (head_kv * kSeqKv + j) * kHeadDim;
      double score = 0;
      for (int d = 0; d < kHeadDim; ++d) score += (double)q[d] * k[d];
      /* Scores are small here: no maximum needed. */
      probability[i * kSeqKv + j] = visible == NULL || visible(i, j) ? exp(scale * score) : 0;
      sum += probability[i * kSeqKv + j];
    }
    answer->lse[row] = sum > 0 ? log(sum) : -INFINITY;
    for (int j = 0; j < kSeqKv; ++j) {
      const float* v = p->v + (head_kv * kSeqKv + j) * kHeadDimV;
      double* share = &probability[i * kSeqKv + j];
      *share = sum > 0 ? *share / sum : 0;
      for (int d = 0; d < kHeadDimV; ++d) o[d] += *share * v[d];
    }
    const float* d_o = p->d_o + row * kHeadDimV;
    double delta = 0;
    for (int d = 0; d < kHeadDimV; ++d) delta += d_o[d] * o[d];
    for (int j = 0; j < kSeqKv; ++j) {
      const int key = head_kv * kSeqKv + j;
      const double share = probability[i * kSeqKv + j];
      double d_share = 0;
      for (int d = 0; d < kHeadDimV; ++d) {
        d_share += (double)d_o[d] * p->v[key * kHeadDimV + d];
        answer->d_v[key * kHeadDimV + d] += share * d_o[d];
      }
      const double d_score = scale * share * (d_share - delta);
      for (int d = 0; d < kHeadDim; ++d) {
        answer->d_q[row * kHeadDim + d] += d_score * p->k[key * kHeadDim + d];
        answer->d_k[key * kHeadDim + d] += d_score * q[d];
      }
    }
  }
}

/* Rounding of f32 sums of at most Skv or group * Sq terms of magnitude one. */
static void compare(const char* name, const float* actual, const double* expected, int n) {
  const double tolerance = 1.2e-7 * 4 * (kSeqQ + kSeqKv) * (kHeadsQ / kHeadsKv);
  for (int i = 0; i < n; ++i) {
    if ((double)actual[i] == expected[i]) continue; /* infinities too */
    if (fabs(actual[i] - expected[i]) <= tolerance) continue;
    fprintf(stderr, "%s[%d]: %.9g, expected %.9g +- %.2g\n", name, i, (double)actual[i],
            expected[i], tolerance);
    exit(1);
  }
}

void problem_check(const struct problem* p, visible_fn visible, int backward) {
  struct naive* answer = calloc(1, sizeof *answer);
  CHECK(answer != NULL);
  for (int b = 0; b < kBatch; ++b) {
    for (int h = 0; h < kHeadsQ; ++h) naive_head(p, visible, b, h, answer);
  }
  compare("o", p->o, answer->o, kO);
  compare("lse", p->lse, answer->lse, kLse);
  if (backward) {
    compare("d_q", p->d_q, answer->d_q, kQ);
    compare("d_k", p->d_k, answer->d_k, kK);
    compare("d_v", p->d_v, answer->d_v, kV);
  }
  free(answer);
}
