"""`histojax bench`: ours and what a user would pick instead, in turn, on one machine."""
