"""The server: HTTP, wire schema, limits, settings, metrics, page and the command line."""
