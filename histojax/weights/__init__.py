"""Weights from elsewhere: files of PyTorch's world to our parameters and back. Imports neither JAX nor PyTorch."""

from histojax.weights.errors import MismatchError, WeightsError
from histojax.weights.files import Contents, inspect, read
from histojax.weights.names import Naming, Report, Rule, Shapes, Table, convert, export
from histojax.weights.tables import TABLES

__all__ = [
    "TABLES",
    "Contents",
    "MismatchError",
    "Naming",
    "Report",
    "Rule",
    "Shapes",
    "Table",
    "WeightsError",
    "convert",
    "export",
    "inspect",
    "read",
]
