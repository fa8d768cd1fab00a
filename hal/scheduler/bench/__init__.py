"""What a daemon does in a second, measured from outside with clients of their own processes."""
