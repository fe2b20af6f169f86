/* What the C tests share: checks that end the program, and small problems with a naive answer. */
#ifndef TESSERA_TESTS_C_CHECK_H_
#define TESSERA_TESTS_C_CHECK_H_

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tessera/tessera.h"

#define CHECK(condition)                                                        \
  do {                                                                          \
    if (!(condition)) {                                                         \
      fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
      fprintf(stderr, "tessera_last_error: %s\n", tessera_last_error());        \
      exit(1);                                                                  \
    }                                                                           \
  } while (0)

#define CHECK_OK(call) CHECK((call) == TESSERA_OK)

/* The call must fail with this status and one line that contains `text`. */
#define CHECK_FAILS(call, status, text)                \
  do {                                                 \
    CHECK((call) == (status));                         \
    CHECK(strstr(tessera_last_error(), text) != NULL); \
    CHECK(strchr(tessera_last_error(), '\n') == NULL); \
  } while (0)

/* One small attention, all of it in float, with tensors over its own arrays. */
enum {
  kBatch = 2,
  kHeadsQ = 4,
  kHeadsKv = 2,
  kSeqQ = 19,
  kSeqKv = 23,
  kHeadDim = 8,
  kHeadDimV = 12,
  kQ = kBatch * kHeadsQ * kSeqQ * kHeadDim,
  kK = kBatch * kHeadsKv * kSeqKv * kHeadDim,
  kV = kBatch * kHeadsKv * kSeqKv * kHeadDimV,
  kO = kBatch * kHeadsQ * kSeqQ * kHeadDimV,
  kLse = kBatch * kHeadsQ * kSeqQ,
  kScores = kSeqQ * kSeqKv
};

struct problem {
  float q[kQ], k[kK], v[kV], o[kO], lse[kLse];
  float d_o[kO], d_q[kQ], d_k[kK], d_v[kV];
  tessera_tensor tq, tk, tv, to, tlse, td_o, td_q, td_k, td_v;
  tessera_attention attention;
  tessera_inputs inputs;
  tessera_outputs outputs;
  tessera_output_gradients d_outputs;
  tessera_input_gradients d_inputs;
};

/* Fills in everything but the results, which are NaN. */
void problem_init(struct problem* p);

/* Whether query i of the naive answer sees key j. */
typedef int (*visible_fn)(int i, int j);

/* Forward and backward in plain loops and double; `visible` may be NULL. Compares with the results
   in `p` (gradients only if `backward`) and ends the program where they differ. */
void problem_check(const struct problem* p, visible_fn visible, int backward);

#endif /* TESSERA_TESTS_C_CHECK_H_ */
