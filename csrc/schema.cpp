// Every op's schema, once. Kernels are registered beside their code (cpu/, cuda/), shapes for the compiler in
// alkernels/ops. A set of rows is one tensor, or two (rows, rows2) that stand for the rows' outer products.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(alkernels, m) {
  // ---- what users call; composed in Python of the steps below ----

  // k rows of the pool, each the farthest from all labelled rows and earlier picks. start < 0: none given.
  m.def(
      "k_center_greedy(Tensor features, Tensor? features2, int k, *, Tensor? labeled=None, Tensor? labeled2=None, "
      "int start=-1, str metric='euclidean', int seed=0) "
      "-> (Tensor indices, Tensor scores, Tensor distances, Tensor nearest)");
  // k rows of the pool, each drawn with probability proportional to its squared distance.
  m.def(
      "kmeans_plusplus(Tensor features, Tensor? features2, int k, *, Tensor? labeled=None, Tensor? labeled2=None, "
      "int start=-1, int seed=0) -> (Tensor indices, Tensor scores, Tensor distances, Tensor nearest)");

  // Entropy of each row's label together with those of chosen points, under K posterior draws [N, K, C].
  m.def(
      "joint_entropy(Tensor probs, Tensor? chosen=None, *, bool log_input=False, int max_configurations=40000, "
      "int num_samples=40000, int seed=0) -> Tensor");
  // Rows whose labels together say the most about the draws.
  m.def(
      "batchbald(Tensor probs, int batch_size, *, bool log_input=False, int max_configurations=40000, "
      "int num_samples=40000, int seed=0) -> (Tensor indices, Tensor scores)");
  // Mutual information of each row's label with the draws; with the labels of target points, averaged over them.
  m.def("bald(Tensor probs, *, bool log_input=False) -> Tensor");
  m.def("epig(Tensor probs, Tensor target_probs, *, bool log_input=False) -> Tensor");

  // k rows that together cover the pool best: similarity 'cosine', 'rbf' or 'tophat'. covered: what each row starts at.
  m.def(
      "greedy_coverage(Tensor features, int k, *, Tensor? candidates=None, Tensor? weights=None, Tensor? labeled=None, "
      "Tensor? covered=None, str similarity='cosine', float? bandwidth=None) "
      "-> (Tensor indices, Tensor scores, Tensor covered)");

  // The k points nearest to each query, nearest first.
  m.def("knn(Tensor queries, Tensor points, int k, *, str metric='euclidean') -> (Tensor distances, Tensor indices)");
  // KL(p_i || q_j) of all pairs; of the pairs (i, neighbors[i, a]) (gather 'q') or (neighbors[j, a], j) (gather 'p').
  m.def("pairwise_kl(Tensor p, Tensor q, *, bool log_input=False) -> Tensor");
  m.def("gathered_kl(Tensor p, Tensor q, Tensor neighbors, *, bool log_input=False, str gather='q') -> Tensor");
  // Of each row of p over all q: the mean; the k smallest, ascending, or largest, descending.
  m.def("mean_kl(Tensor p, Tensor q, *, bool log_input=False) -> Tensor");
  m.def(
      "topk_kl(Tensor p, Tensor q, int k, *, bool largest=False, bool log_input=False) "
      "-> (Tensor values, Tensor indices)");

  // ---- steps ----

  // out[n] = -sum_m mass[m] sum_c q log q with q = weights[m] . probs[n, :, c]; products in float64 where `wide`, else
  // in float32, sums in float64.
  m.def("conditional_entropy(Tensor probs, Tensor weights, Tensor mass, bool wide) -> Tensor");
  // One number a row of contiguous predictions [n, k, c], by the code of csrc/common/predictions.h. worst: the largest
  // |sum - 1| of a distribution, +inf where that is NaN, and how far the smallest probability is below 0.
  m.def("prediction_scores(Tensor probs, int score, bool log_input) -> (Tensor scores, Tensor worst)");

  // gains[j] = sum_i weights[i] max(0, s(row i, candidate j) - covered[i]), in float64; without `exact` upper bounds of
  // them, in float32. `refine`: squared distances from differences where products lose them beside the bandwidth.
  m.def(
      "coverage_gains(Tensor rows, Tensor weights, Tensor covered, Tensor candidates, Tensor? shift, int similarity, "
      "float bandwidth, bool exact, bool refine) -> Tensor");
  // covered[i] = max(covered[i], s(row i, each center)), in float64.
  m.def(
      "raise_covered(Tensor rows, Tensor centers, Tensor? shift, int similarity, float bandwidth, bool refine, "
      "Tensor(a!) covered) -> ()");
  // d2[i] = min(d2[i], squared distance to each centre); error[i] bounds its error, at most 1e-5 level;
  // nearest[i] = first_center + the centre that lowered it.
  m.def(
      "lower_distances(Tensor rows, Tensor? rows2, Tensor centers, Tensor? centers2, Tensor? shift, int metric, "
      "int first_center, float level, Tensor(a!) d2, Tensor(b!) error, Tensor(c!)? nearest) -> ()");
  // Merges points, numbered from first_point, into each query's k nearest: squared distances and numbers [queries, k]
  // in order, +inf and -1 behind the last. `wide`: products in float64.
  m.def(
      "nearest_points(Tensor queries, Tensor points, Tensor? shift, int metric, int first_point, bool wide, "
      "Tensor(a!) values, Tensor(b!) indices) -> ()");
  // out[i, j] = KL(p_i || q_j), products in the dtype of out; each within 1e-4 of itself.
  m.def("divergences(Tensor p, Tensor q, bool log_input, Tensor(a!) out) -> ()");
  // Merges rows of q, numbered from first_row, into each row of p's k smallest divergences, as nearest_points does;
  // largest: the k smallest negated ones.
  m.def(
      "nearest_divergences(Tensor p, Tensor q, bool log_input, bool largest, int first_row, Tensor(a!) values, "
      "Tensor(b!) indices) -> ()");
  // Squared distances from row i to row i of others, in float64.
  m.def("paired_distances(Tensor rows, Tensor? rows2, Tensor others, Tensor? others2, int metric) -> Tensor");
  // The m largest of d2, larger first, ties to the lower index.
  m.def("top_candidates(Tensor d2, int m) -> (Tensor values, Tensor indices)");
  // Farthest-first inside the candidates, while no row outside (none above `bound`) can beat the pick and it is at
  // least at `level`: positions of the picks, -1 behind the last; their squared distances. Bound and level are vectors
  // of one element, so that nobody waits for a GPU that has them.
  m.def(
      "k_center_block(Tensor rows, Tensor? rows2, Tensor? shift, int metric, Tensor values, Tensor indices, "
      "Tensor bound, Tensor level, int limit) -> (Tensor picks, Tensor scores)");
  // One row for each uniform, drawn with probability d2[i] / sum(d2); -1 where the sum is zero.
  m.def("draw_by_weight(Tensor d2, Tensor uniforms) -> (Tensor indices, Tensor total)");
  // The proposals that a D^2 draw accepts, in order: positions, -1 behind the last; their squared distances when
  // accepted.
  m.def(
      "kmeans_plusplus_block(Tensor rows, Tensor? rows2, Tensor? shift, int metric, Tensor values, Tensor indices, "
      "Tensor uniforms, Tensor level, int limit) -> (Tensor picks, Tensor scores)");
}
