"""Dropout and Gaussian noise on tail features, for ltcore."""
