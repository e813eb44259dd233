"""The exception for errors that a user can fix; `main` prints it without a traceback. The exit code of Ctrl-C."""

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it: Ctrl-C ended the program at once


class RunError(ValueError):
    """A run cannot continue; the message names the field or file and says what to do."""
