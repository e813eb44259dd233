"""The one exception of this room: bad data, told in words."""


class DataError(ValueError):
    """Something is wrong with the user's data; the message names the file, the fact and the remedy."""
