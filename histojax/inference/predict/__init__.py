"""Images to a table of predictions."""
