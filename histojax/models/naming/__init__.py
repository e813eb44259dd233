"""Parameter names of other implementations: one module of rules per family of models.

A `Naming` (see `rules`) lists, for one implementation, which of its arrays correspond to which of our parameters. A
model's `ModelSpec` holds the namings of its public weights; `histojax.weights` reads and writes files with them.
"""
