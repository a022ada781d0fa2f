"""The store's own figures, for metrics: read now and then, shown at every scrape."""

from collections.abc import Iterable, Mapping
from typing import Final

from prometheus_client.metrics_core import Metric

from registryd.errors import StorageUnavailable
from registryd.metrics import gauge_family
from registryd.storage.connection import Connection

SHOWN: Final[Mapping[str, tuple[str, str]]] = {
    "used_memory": ("memory_bytes", "Memory the store uses for data."),
    "used_memory_rss": ("resident_memory_bytes", "Memory of the store's process."),
    "maxmemory": ("memory_limit_bytes", "The most memory the store may use; 0 is no limit."),
    "mem_fragmentation_ratio": ("memory_fragmentation_ratio", "Resident over used memory."),
    "connected_clients": ("clients", "Connections to the store, ours and others'."),
    "blocked_clients": ("blocked_clients", "Connections that wait for something in the store."),
    "instantaneous_ops_per_sec": ("operations_per_second", "Commands the store runs a second."),
    "used_cpu_user": ("cpu_user_seconds", "CPU time of the store outside the kernel."),
    "used_cpu_sys": ("cpu_system_seconds", "CPU time of the store in the kernel."),
    "evicted_keys": ("evicted_keys", "Keys thrown away for lack of memory: should stay 0."),
    "rejected_connections": ("rejected_connections", "Connections refused: too many clients."),
    "aof_enabled": ("append_only_file", "1 while writes are appended to a file."),
    "aof_current_size": ("append_only_file_bytes", "Size of that file."),
    "aof_delayed_fsync": ("delayed_fsyncs", "Times the disk was too slow for the file."),
    "rdb_changes_since_last_save": ("unsaved_changes", "Changes since the last snapshot."),
    "connected_slaves": ("replicas", "Replicas that follow the store."),
    "uptime_in_seconds": ("uptime_seconds", "Time since the store started."),
}
"""Fields of INFO, and what they are called here behind `registryd_store_info_`."""

_OK: Final = ("aof_last_write_status", "rdb_last_bgsave_status", "aof_last_bgrewrite_status")


class StoreFigures:
    """`turn` is for a supervised loop; what it read is shown until the next time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._info: Mapping[str, object] = {}

    async def turn(self) -> None:
        try:
            self._info = await self._connection.call("INFO")
        except StorageUnavailable:
            self._info = {}  # old figures would look like new ones

    def collect(self) -> Iterable[Metric]:
        for field, (name, text) in SHOWN.items():
            value = self._info.get(field)
            if isinstance(value, int | float):
                yield gauge_family(f"store_info_{name}", text, {"": float(value)})
        writes = {field: float(self._info[field] == "ok") for field in _OK if field in self._info}
        if writes:
            yield gauge_family(
                "store_info_persistence_ok", "1 while the last attempt went well.", writes, "what"
            )
