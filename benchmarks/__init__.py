"""What hal costs, measured: ``python -m benchmarks [NAME…] [--json]``. README.md says how to add one."""
