"""Tables of experiments: a file says rows, columns and what a paper prints; here is what of it we have.

Free of torch, so that a table is printed at once.
"""
