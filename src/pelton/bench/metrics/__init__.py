"""Metrics, one file each: formula, unit and definition beside the code that computes it."""
