"""Slices of devices on one node: who holds what (claims), and slices made by hand, without a scheduler."""
