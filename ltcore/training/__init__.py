"""A run from its data to its result: the stages, their loop and their steps."""
