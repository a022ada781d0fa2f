"""What happened, told to others: CloudEvents, event streams and watches."""
