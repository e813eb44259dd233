"""The `histojax` command: one module per verb."""
