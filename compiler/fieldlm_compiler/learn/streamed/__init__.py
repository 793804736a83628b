"""More examples than fit in memory: tasks are found among a part of them, and all the others are put to those."""
