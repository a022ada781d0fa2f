"""The change stream: one follower a process, gap detection, many bounded subscribers."""
