"""Jobs: programs that the scheduler starts itself, on whichever nodes have room, and looks after."""
