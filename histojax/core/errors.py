"""The exception for errors that a user can fix; `main` prints it without a traceback. Exit codes of a stop."""

EXIT_RESUMABLE = 75  # EX_TEMPFAIL: stopped from outside and saved; the same command resumes
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it: Ctrl-C ended the program at once


class RunError(ValueError):
    """A run cannot continue; the message names the field or file and says what to do."""
