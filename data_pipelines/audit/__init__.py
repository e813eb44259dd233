"""Dataset audit: duplicates, leaks, label conflicts, colour shifts."""
