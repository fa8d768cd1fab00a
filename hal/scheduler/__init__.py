"""Leases of devices and slices: a pure core, and the daemon, store, wire and client around it."""
