"""Seeded synthetic H&E-like images in BreakHis's layout; no patient, no diagnosis."""

from data_pipelines.synthetic.generator import SyntheticSpec, generate

__all__ = ["SyntheticSpec", "generate"]
