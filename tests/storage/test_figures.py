"""The store's own figures among the metrics."""

from registryd.metrics import Metrics
from registryd.storage.connection import Connection
from registryd.storage.figures import SHOWN, StoreFigures


async def test_the_figures_are_shown_as_they_were_read_last(
    connection: Connection, metrics: Metrics
) -> None:
    figures = StoreFigures(connection)
    metrics.on_scrape(figures.collect)
    value = metrics.registry.get_sample_value
    assert value("registryd_store_info_clients") is None, "nothing was read yet"
    await figures.turn()
    for name, _ in SHOWN.values():
        assert value(f"registryd_store_info_{name}") is not None, name
    assert (value("registryd_store_info_memory_bytes") or 0) > 100_000
    assert value("registryd_store_info_append_only_file") == 1
    written = {"what": "aof_last_write_status"}
    assert value("registryd_store_info_persistence_ok", written) == 1


async def test_a_store_that_is_away_has_no_figures(
    connection: Connection, metrics: Metrics
) -> None:
    figures = StoreFigures(connection)
    await figures.turn()
    assert list(figures.collect())
    away = Connection("unix:///nowhere/at-all", metrics)
    try:
        figures._connection = away
        await figures.turn()
        assert not list(figures.collect()), "old figures would look like new ones"
    finally:
        await away.close()
