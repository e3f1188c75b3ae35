"""BBN: a network of two branches with cumulative learning for ltcore."""

from ltcore_bbn.functional import branch_share, join, rebalancing_distribution, stack_pairs
from ltcore_bbn.method import BBN, BBNOptions
from ltcore_bbn.network import BilateralNetwork, bilateral

__all__ = [
    "BBN",
    "BBNOptions",
    "BilateralNetwork",
    "bilateral",
    "branch_share",
    "join",
    "rebalancing_distribution",
    "stack_pairs",
]
