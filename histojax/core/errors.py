"""The exception for errors that a user can fix; `main` prints it without a traceback."""


class RunError(ValueError):
    """A run cannot continue; the message names the field or file and says what to do."""
