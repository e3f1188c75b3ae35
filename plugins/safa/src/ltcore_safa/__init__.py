"""SAFA: sample-adaptive feature augmentation for ltcore."""
