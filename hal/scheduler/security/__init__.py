"""Who may speak to the scheduler, what they may do, how much of it, and what is noted of it.

Nothing here knows the daemon's operations' content: the gate says who a message is from and whether that
one may ask this; limits say whether it may ask now; the audit log keeps what was asked.
"""
