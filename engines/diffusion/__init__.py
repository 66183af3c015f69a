"""Masked-diffusion language models: text that is revealed token by token, in any order."""
