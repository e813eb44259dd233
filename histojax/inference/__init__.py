"""A trained model asked about images: a checkpoint in, probabilities out."""
