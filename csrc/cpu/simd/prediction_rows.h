// Scores of predictions: every row [draws, classes] gives one number, and what is wrong with its distributions.
//
// prediction_rows.in.cpp implements this header and is compiled once per instruction set; distance_tile.cpp picks one.
#pragma once

#include "../../common/predictions.h"

namespace alkernels {

struct PredictionRows {
  // How many doubles of memory `scores` works in, zeros at first.
  int64_t (*space)(int64_t draws, int64_t classes);
  // out[i] = the score of row i, for rows [begin, end). Raises worst[0] to the largest |sum - 1| of a distribution,
  // +inf where it is NaN, and worst[1] to how far the smallest probability is below 0. A row's score is the same bits
  // whichever rows it is computed beside.
  void (*scores)(const Predictions& in, Score score, int64_t begin, int64_t end, double* space, double* out,
                 double* worst);
};

const PredictionRows& prediction_rows();

namespace portable {
extern const PredictionRows predictions;
}
#ifdef ALKERNELS_X86
namespace avx2 {
extern const PredictionRows predictions;
}
namespace avx512 {
extern const PredictionRows predictions;
}
#endif

}  // namespace alkernels
