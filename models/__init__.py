"""Saplings: small bundled models, the tasks they are trained on, and how they were made."""
