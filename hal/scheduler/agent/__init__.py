"""The agent: what one node does with the scheduler's orders."""
