"""What a trained model gives on a split, and the figures of that."""
