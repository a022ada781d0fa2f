"""Ways to tell somebody outside: one file and one line of the table for each."""
