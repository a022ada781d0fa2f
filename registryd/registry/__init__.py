"""Services, instances, leases and indexes: what registryd exists for."""
