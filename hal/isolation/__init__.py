"""Vendor libraries in processes of their own: what one does to itself, the others do not notice."""
