"""How figures of a model change when its images shift, and whether features follow the class or the source."""
