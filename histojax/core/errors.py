"""The exception for what a user can mend: `main` prints it without a traceback."""


class RunError(ValueError):
    """A run that cannot go on; the message names the field or the file, and the remedy."""
