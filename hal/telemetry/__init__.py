"""What can be measured, by name."""
