"""The embedded torch engine: dense decoders over a paged, tree-shared KV cache."""
