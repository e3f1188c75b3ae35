"""LoRA (Hu et al. 2022): a vision transformer is adapted by low-rank matrices beside its own."""

from ltcore_lora.functional import low_rank_change, low_rank_output
from ltcore_lora.layer import LoRALinear
from ltcore_lora.method import LoRA, LoRAOptions

__all__ = ["LoRA", "LoRALinear", "LoRAOptions", "low_rank_change", "low_rank_output"]
