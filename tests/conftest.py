"""Settings for every test of the suite."""

import os
from pathlib import Path

# Tiny models are faster on one thread, and a second one would only fight over the cores with the
# servers that some tests start. Set before torch is imported; child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Tests speak to this machine only, without TLS: nobody needs to be trusted. Every client of HTTP
# reads the whole list of authorities when it is made, which takes longer than most of its tests.
os.environ.setdefault("SSL_CERT_FILE", str(Path(__file__).with_name("nobody.pem")))
