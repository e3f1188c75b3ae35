"""Self-supervised label augmentation (SLA) for ltcore."""

from ltcore_sla.functional import aggregated, changed_copies, distillation_loss, joint_labels
from ltcore_sla.method import SLA, SLAOptions

__all__ = ["SLA", "SLAOptions", "aggregated", "changed_copies", "distillation_loss", "joint_labels"]
