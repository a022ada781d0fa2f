"""How a node describes itself: liveness, readiness, health, metrics."""

from daemons import Api
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as text_metrics

from registryd import __version__


async def test_the_root_health_is_the_liveness_for_containers(api: Api) -> None:
    for path in ("/health", "/livez", "/api/v1/registry/livez"):
        answer = await api.get(path)
        assert (answer.status, answer.json) == (200, {"status": "healthy"})
        assert answer.headers["Cache-Control"] == "no-store"


async def test_the_registry_health_under_the_long_path_is_another_one(api: Api) -> None:
    await api.register()
    answer = await api.get("/api/v1/registry/health")
    assert answer.status == 200
    assert answer.json["status"] == "healthy"
    assert answer.json["version"] == __version__
    assert answer.json["store"] == {"reachable": True, "staleMs": 0}
    assert answer.json["view"]["instances"] == 1
    assert answer.json["view"]["services"] == 1
    assert answer.json["view"]["revision"] == str(api.seen)


async def test_readiness_is_one_word_unless_asked(api: Api) -> None:
    for path in ("/readyz", "/readyz?verbose=false", "/readyz?verbose=0"):
        answer = await api.get(path)
        assert (answer.status, answer.json) == (200, {"status": "ready"})


async def test_verbose_readiness_says_what_was_looked_at(api: Api) -> None:
    for path in ("/readyz?verbose", "/readyz?verbose=true", "/api/v1/registry/readyz?verbose=1"):
        checks = (await api.get(path)).json["checks"]
        assert checks.keys() == {"store", "view", "expiryGuard", "loops"}
        assert checks["expiryGuard"] == {"holding": False}
        assert checks["loops"].keys() >= {"follower", "sweep", "audit"}
        for loop in checks["loops"].values():
            assert (loop["running"], loop["failures"], loop["late"]) == (True, 0, False)


async def test_a_bad_wish_for_verbosity_is_refused_by_name(api: Api) -> None:
    for query, said in (("verbose=very", "verbose"), ("quiet", "'quiet'")):
        answer = await api.get(f"/readyz?{query}")
        assert (answer.status, answer.problem["code"]) == (400, "malformed")
        assert said in answer.problem["detail"]


async def test_a_draining_node_is_not_ready_and_lives(api: Api) -> None:
    api.daemon._closing.set()
    answer = await api.get("/readyz")
    assert (answer.status, answer.json) == (503, {"status": "draining"})
    assert (await api.get("/livez")).status == 200


async def test_the_metrics_come_as_prometheus_text(api: Api) -> None:
    await api.register(health={"status": "healthy"})
    await api.get("/services")
    answer = await api.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    parsed = text_metrics(answer.body.decode())
    families = {family.name: family for family in parsed}
    assert families
    assert all(name.startswith("registryd_") for name in families)
    healthy = {
        sample.labels["health"]: sample.value for sample in families["registryd_instances"].samples
    }
    assert healthy["healthy"] == 1
    routes = {sample.labels["route"] for sample in families["registryd_http_requests"].samples}
    assert "/services" in routes
    assert families["registryd_store_up"].samples[0].value == 1


async def test_the_metrics_come_as_open_metrics_where_asked(api: Api) -> None:
    answer = await api.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    assert answer.body.endswith(b"# EOF\n")
    parsed = open_metrics(answer.body.decode())  # type: ignore[no-untyped-call]
    assert {family.name for family in parsed} >= {
        "registryd_http_requests", "registryd_view_revision",
    }  # fmt: skip


async def test_no_label_holds_a_name_that_a_client_chose(api: Api) -> None:
    await api.register("canary", "canary", zone="canary", metadata={"tags": ["canary"]})
    await api.get("/canary/canary?canary=1")
    await api("CANARY", "/services/canary")
    assert b"canary" not in (await api.get("/metrics")).body.lower()


async def test_the_description_is_served(api: Api) -> None:
    for path in ("/openapi.json", "/api/v1/registry/openapi.json"):
        answer = await api.get(path)
        assert answer.status == 200
        assert answer.json["openapi"].startswith("3.1")
        assert "/services/{name}/url" in answer.json["paths"]
