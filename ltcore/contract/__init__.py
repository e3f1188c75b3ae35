"""What plugins see: hooks, records, the base of a method, and the data classes of a recipe."""
