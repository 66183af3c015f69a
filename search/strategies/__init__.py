"""The built-in strategies, one file each; found by entry point, never imported from here."""
