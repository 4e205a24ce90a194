"""Documents from the queue to every live index version."""
