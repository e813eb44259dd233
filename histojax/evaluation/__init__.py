"""From a table of predictions, whoever made it, to numbers with intervals; imports no JAX."""
