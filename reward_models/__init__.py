"""Reward models judge answers, whole or step by step; each owns its own KV cache."""
