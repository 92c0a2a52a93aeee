"""Selections over the shards of several ranks of torch.distributed, exact: the picks of one process that holds all.

Every rank calls the function with its own rows and gets the same picks; a shard's rows are numbered behind those of
all lower ranks.
"""

from alkernels.distributed._ranks import Message, Traffic, traffic
from alkernels.distributed.batchbald import batchbald
from alkernels.distributed.greedy_coverage import greedy_coverage
from alkernels.distributed.k_center_greedy import k_center_greedy
from alkernels.distributed.kmeans_plusplus import kmeans_plusplus
from alkernels.distributed.knn import knn

__all__ = [
    "Message",
    "Traffic",
    "batchbald",
    "greedy_coverage",
    "k_center_greedy",
    "kmeans_plusplus",
    "knn",
    "traffic",
]
