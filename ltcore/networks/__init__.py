"""Backbones of timm, files of weights, optimisers and learning rates."""
