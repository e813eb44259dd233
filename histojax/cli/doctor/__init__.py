"""`histojax doctor`: checks of the machine before a run."""
