"""AdaptFormer (Chen et al. 2022): a vision transformer is adapted by bottlenecks beside its MLPs."""

from ltcore_adaptformer.block import AdaptedBlock, Bottleneck
from ltcore_adaptformer.method import AdaptFormer, AdaptFormerOptions

__all__ = ["AdaptFormer", "AdaptFormerOptions", "AdaptedBlock", "Bottleneck"]
