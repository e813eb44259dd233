"""`histojax bench`: training, prediction and input speed, optionally beside PyTorch."""
