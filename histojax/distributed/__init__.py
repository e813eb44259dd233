"""Devices and processes: mesh and shardings, membership of a run, process-wide set-up."""
