"""Weight files of other programs and conversion to and from our parameters. Does not import PyTorch."""

from histojax.weights.detection import Shapes
from histojax.weights.errors import MismatchError, WeightsError
from histojax.weights.files import Contents, inspect, read, sha256
from histojax.weights.names import Report, convert, export

__all__ = [
    "Contents",
    "MismatchError",
    "Report",
    "Shapes",
    "WeightsError",
    "convert",
    "export",
    "inspect",
    "read",
    "sha256",
]
