"""Which method answers which hook in which stage, checked before anything is read."""
