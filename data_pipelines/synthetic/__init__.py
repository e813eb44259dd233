"""Seeded synthetic H&E-like images in the layout of BreakHis; no patient, no diagnosis."""

from data_pipelines.synthetic.generator import SyntheticSpec, generate

__all__ = ["SyntheticSpec", "generate"]
