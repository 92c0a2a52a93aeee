"""Selections over the shards of several ranks of torch.distributed, exact: the picks of one process that holds all.

Every rank calls the function with its own rows and gets the same picks; a shard's rows are numbered behind those of
all lower ranks.
"""

from alkernels.distributed._ranks import Message, Traffic, traffic
from alkernels.distributed.k_center_greedy import k_center_greedy
from alkernels.distributed.kmeans_plusplus import kmeans_plusplus

__all__ = ["Message", "Traffic", "k_center_greedy", "kmeans_plusplus", "traffic"]
