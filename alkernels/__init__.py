"""Exact data-selection kernels for PyTorch: the picks of the classic greedy rules in a few passes over the pool."""

from alkernels import distributed, models, reference, strategies
from alkernels._files import open_array
from alkernels._inputs import CoverageSelection, CoverSelection, Neighbors, Selection, TopK
from alkernels._load import build_info, has_cuda_kernels
from alkernels._load import version as __version__
from alkernels._sources import Reads, count_reads
from alkernels.learner import ActiveLearner
from alkernels.models.collecting import collect
from alkernels.ops.bald import bald, epig
from alkernels.ops.batchbald import batchbald
from alkernels.ops.greedy_coverage import greedy_coverage
from alkernels.ops.joint_entropy import joint_entropy
from alkernels.ops.k_center_greedy import k_center_greedy
from alkernels.ops.kmeans_plusplus import kmeans_plusplus
from alkernels.ops.knn import knn
from alkernels.ops.pairwise_kl import pairwise_kl
from alkernels.strategies._select import select

__all__ = [
    "ActiveLearner",
    "CoverSelection",
    "CoverageSelection",
    "Neighbors",
    "Reads",
    "Selection",
    "TopK",
    "__version__",
    "bald",
    "batchbald",
    "build_info",
    "collect",
    "count_reads",
    "distributed",
    "epig",
    "greedy_coverage",
    "has_cuda_kernels",
    "joint_entropy",
    "k_center_greedy",
    "kmeans_plusplus",
    "knn",
    "models",
    "open_array",
    "pairwise_kl",
    "reference",
    "select",
    "strategies",
]
