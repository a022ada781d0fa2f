"""The registryd command."""
