"""Who calls: API keys, tokens, certificates, and the record of who was refused and who administered."""
