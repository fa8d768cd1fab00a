"""Simulations that drive the scheduler's own placement: what is measured here is what runs."""
