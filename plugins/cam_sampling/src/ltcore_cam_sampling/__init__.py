"""CAM-based sampling for ltcore: foregrounds of rare images, moved within their image."""

from ltcore_cam_sampling.functional import boxes, class_activation, foreground, made_share, moved, paste, sources
from ltcore_cam_sampling.method import CamSampling, CamSamplingOptions

__all__ = [
    "CamSampling",
    "CamSamplingOptions",
    "boxes",
    "class_activation",
    "foreground",
    "made_share",
    "moved",
    "paste",
    "sources",
]
