"""What colour and texture alone predict: the baseline beside every accuracy of a network."""
