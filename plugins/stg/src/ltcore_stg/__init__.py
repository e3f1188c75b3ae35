"""STG: a statistics generator for tail features, for ltcore."""
