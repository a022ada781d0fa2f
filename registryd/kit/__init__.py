"""Things every folder may use: clock, supervised tasks, backoff. Knows no product word."""
