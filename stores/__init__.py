"""Shared state: what replicas must agree on. Imports nothing of ours."""
