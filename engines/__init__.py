"""Engines generate tokens. They know neither search nor rewards nor HTTP."""
