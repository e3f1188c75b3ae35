"""``ltcore bench``: how fast this machine lets a recipe be, and how far off it is; see the README."""
