"""How unlike the training images an image is: what a run remembers of them, and what tables say of other images."""
