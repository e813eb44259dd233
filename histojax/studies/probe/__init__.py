"""Probes: what frozen features predict under a split protocol, beside what colour and texture alone predict."""
