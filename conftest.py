"""What holds for every test, core's and plugins'."""

import os

# Tiny networks gain nothing from a second thread, and lose much where the machine is shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

# The same examples in every run, so that a failure is the change's; `--hypothesis-profile=default` looks for new ones.
settings.register_profile("ltcore", deadline=None, derandomize=True)
settings.load_profile("ltcore")
