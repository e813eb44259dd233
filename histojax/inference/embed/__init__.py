"""Features of images and slides from a trained model, or from pretrained weights."""
