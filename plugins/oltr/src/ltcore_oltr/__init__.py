"""OLTR: modulated attention and dynamic meta-embedding from a memory of class centroids, for ltcore."""

from ltcore_oltr.functional import attraction, meta_embedding, modulated_attention, repulsion, squared_distances
from ltcore_oltr.method import OLTR, OLTROptions
from ltcore_oltr.network import CosineNorm, Memory, ModulatedAttention, OLTRNetwork

__all__ = [
    "OLTR",
    "CosineNorm",
    "Memory",
    "ModulatedAttention",
    "OLTRNetwork",
    "OLTROptions",
    "attraction",
    "meta_embedding",
    "modulated_attention",
    "repulsion",
    "squared_distances",
]
