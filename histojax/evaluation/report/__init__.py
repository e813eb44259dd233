"""Report page, figures and model card, made from a table of predictions."""
