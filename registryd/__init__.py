"""registryd: a service registry on Redis with leases, answered from memory."""

__version__ = "0.1.0"
