"""The connection to the store: embedded server, clients, keys, scripts, preflight. The only folder that imports redis."""
