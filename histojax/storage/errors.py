"""Errors of a bucket: what is wrong, and what the user can do."""

import re

from histojax.core.errors import RunError

# What tensorstore reports where the same request may succeed later.
_TRANSIENT = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "INTERNAL", "UNKNOWN", "DATA_LOSS", "RESOURCE_EXHAUSTED")
# Text in the client's message -> what is wrong and what to do. The first that matches counts. These are codes of S3,
# some of which the client takes for errors that pass.
_CODES = (
    ("NoSuchBucket", "there is no such bucket: create it, or correct its name"),
    ("RequestTimeTooSkewed", "this machine's clock differs too much from the server's: set it, such as by NTP"),
    ("AuthorizationHeaderMalformed", "the bucket is in another region: set AWS_REGION to the one that its page names"),
    ("PermanentRedirect", "the bucket is in another region: set AWS_REGION to the one that its page names"),
    ("InvalidAccessKeyId", "the server does not know the access key: correct AWS_ACCESS_KEY_ID or the profile"),
    ("SignatureDoesNotMatch", "the secret key does not fit the access key: correct AWS_SECRET_ACCESS_KEY"),
    ("ExpiredToken", "the credentials have expired: log in again, then rerun the same command"),
)
# These count after the statuses of `_TRANSIENT`.
_REASONS = (
    ("http_response_code='301'", "the bucket is in another region: set AWS_REGION to the one that its page names"),
    ("http_response_code='404'", "there is no such bucket: create it, or correct its name"),
    ("http_response_code='401'", "no valid credentials: log in ({login}), then rerun the same command"),
    ("http_response_code='403'", "these credentials may not do this: grant them read and write access to the bucket"),
    ("credentials", "no credentials were found: log in ({login}), then rerun the same command"),
    ("UNAUTHENTICATED", "no valid credentials: log in ({login}), then rerun the same command"),
    ("PERMISSION_DENIED", "these credentials may not do this: grant them read and write access to the bucket"),
)
_LOGIN = {"gs": "gcloud auth application-default login", "s3": "aws configure, or AWS_ACCESS_KEY_ID and its secret"}


class BucketError(RunError):
    """A bucket cannot be read or written; the message names the address and the remedy."""


class NoAnswerError(BucketError):
    """The bucket did not answer, or with errors that may pass, for as long as the client repeated the request."""


class BehindTheEndError(BucketError):
    """A range of bytes lies behind the end of an object."""


def in_words(address: str, message: str) -> BucketError:
    """Return the exception for an error of tensorstore's client.

    Args:
      address: the object or folder.
      message: the client's message, which begins with a status such as `UNAVAILABLE`.
    """
    status = message.partition(":")[0]
    if status == "OUT_OF_RANGE":
        return BehindTheEndError(f"{address}: has fewer bytes than were asked for")
    login = _LOGIN[address.partition(":")[0]]
    for text, reason in _CODES if status in _TRANSIENT else (*_CODES, *_REASONS):
        if text in message:
            return BucketError(f"{address}: {reason.format(login=login)} ({_short(message)})")
    if status in _TRANSIENT:
        return NoAnswerError(f"{address}: no answer from the server ({_short(message)}). Check the network")
    return BucketError(f"{address}: {_short(message)}")


def _short(message: str) -> str:
    """Return the first part of a message, without the response's header and body."""
    return re.sub(r"\s+", " ", message.partition(" [")[0]).strip()[:200]
