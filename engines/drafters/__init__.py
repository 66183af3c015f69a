"""Drafters: cheap guesses of the next tokens, which the engine verifies in one step."""
