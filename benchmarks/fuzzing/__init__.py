"""Damaged and odd inputs for every reader of ltcore, read in forked children under limits; ``pytest -m fuzz``.

`mutation` spoils bytes, text and plain data. `readers_data` and `readers_runs` say for each reader what a valid input
is and who reads it. `forked` reads the inputs and sorts what goes wrong into kinds.
"""
