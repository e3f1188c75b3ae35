"""GLAG for ltcore: gradual balanced loss and adaptive feature generation."""
