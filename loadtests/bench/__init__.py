"""Benchmarks: each leaves named figures with their spread; none is a test."""
