"""Settings for every test of the suite."""

import os

# Tiny models are faster on one thread, and a second one would only fight over the cores with the
# servers that some tests start. Set before torch is imported; child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
