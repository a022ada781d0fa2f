"""Everything that happens to services, as it happens. python examples/events.py"""

from registryd.client import SyncRegistryClient

with SyncRegistryClient() as client:
    for event in client.events("service:*"):
        print(event.time, event.type, event.subject, flush=True)
