"""From a table of predictions of any framework to numbers with intervals. This room does not import JAX."""
