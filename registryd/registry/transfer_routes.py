"""The HTTP face of export and import."""

import asyncio
from typing import Final

from registryd.errors import Malformed
from registryd.kit.clock import Clock
from registryd.registry.importer import Importer
from registryd.registry.reads import Reads, known_parameters
from registryd.registry.routes import FRESH_PARAMS
from registryd.registry.transfer import (
    ImportResult,
    Mode,
    RegistryFile,
    closing,
    exported,
    kept,
    opening,
)
from registryd.registry.view import View
from registryd.web.caller import Permission, Scope
from registryd.web.reply import JSON, Outlet, Reply, Stream
from registryd.web.request import Request
from registryd.web.routing import Answer, Param, Route

MAX_IMPORT_BYTES: Final = 256 * 1024 * 1024
"""A hundred thousand instances take half of that."""
IMPORT_SECONDS: Final = 120.0
PIECE: Final = 50
"""Instances written before others get a turn: 2 ms or so."""


class TransferRoutes:
    def __init__(self, view: View, reads: Reads, importer: Importer, clock: Clock) -> None:
        self._view = view
        self._reads = reads
        self._importer = importer
        self._clock = clock

    async def export_registry(self, request: Request) -> Stream:
        known_parameters(request)
        await self._reads.fresh(request)
        now = self._clock.now()
        # Instances never change: this is the registry of one moment, however long the writing takes.
        instances = kept(self._view)

        async def produce(outlet: Outlet) -> None:
            await outlet.send(opening(now))
            last: str | None = None
            for start in range(0, len(instances), PIECE):
                piece = instances[start : start + PIECE]
                await outlet.send(exported(piece, last))
                last = piece[-1].service
                await asyncio.sleep(0)
            await outlet.send(closing(empty=not instances))

        name = f"registryd-{now:%Y%m%dT%H%M%SZ}.json"
        headers = [header for header in self._reads.headers() if header[0] != "ETag"]
        headers.append(("Content-Disposition", f'attachment; filename="{name}"'))
        return Stream(produce, content_type=JSON, headers=headers)

    async def import_registry(self, request: Request) -> Reply:
        parameters = known_parameters(request, "mode", "dryRun", "confirm")
        mode = parameters.get("mode") or Mode.MERGE
        if mode not in set(Mode):
            raise Malformed(f"mode: expected merge or replace, found {mode[:40]!r}")
        dry_run = parameters.get("dryRun") or "false"
        if dry_run not in {"true", "false", "1", "0"}:
            raise Malformed(f"dryRun: expected true or false, found {dry_run[:40]!r}")
        answer = await self._importer.run(
            await request.json_text(),
            Mode(mode),
            dry_run=dry_run in {"true", "1"},
            confirm=parameters.get("confirm", ""),
        )
        headers = [("X-Registry-Revision", str(self._view.revision))]
        return Reply(200, answer.model_dump_json(by_alias=True).encode(), headers=headers)

    def table(self) -> list[Route]:
        return [
            Route(
                method="GET",
                path="/export",
                handler=self.export_registry,
                permission=Permission.ADMIN,
                scope=Scope.WHOLE,
                operation_id="exportRegistry",
                summary="All that is registered, as a file",
                description="The registry of one moment, but for instances that drain. Answered while the "
                "store is away, too. No keys and no secrets of webhooks are in it.",
                tag="administration",
                query=FRESH_PARAMS,
                answers={200: Answer("The file", RegistryFile)},
                problems=(412,),
            ),
            Route(
                method="POST",
                path="/import",
                handler=self.import_registry,
                permission=Permission.ADMIN,
                scope=Scope.WHOLE,
                operation_id="importRegistry",
                summary="Make the registry what a file says, all or nothing",
                description="Leases begin anew. Who is registered keeps incarnation, health and maintenance "
                "that the file does not mention. Files of older layouts are read too.",
                tag="administration",
                query=(
                    Param(
                        "mode",
                        "`merge` (default) adds and changes; `replace` also removes what is not in the "
                        "file",
                        {"type": "string", "enum": [mode.value for mode in Mode]},
                    ),
                    Param("dryRun", "Only tell what would change", {"type": "boolean"}),
                    Param("confirm", "Where `replace` removes: what the dry run gave"),
                ),
                body=RegistryFile,
                body_bytes=MAX_IMPORT_BYTES,
                body_seconds=IMPORT_SECONDS,
                answers={200: Answer("What has changed, or would", ImportResult)},
                problems=(409, 413, 415, 422, 429),
            ),
        ]
