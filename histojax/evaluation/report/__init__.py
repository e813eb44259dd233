"""A report from a table of predictions: one module per file that it writes, and one per section of report.json."""
