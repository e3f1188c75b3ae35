"""Data sets in memory: the long tail, the sets themselves, held-out images, and the loader of training batches."""
