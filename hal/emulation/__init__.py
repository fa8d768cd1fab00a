"""Emulated machines: descriptions as data, and what runs a command on one."""
