"""HTTP without resources: route table, access, codec, problem+json, OpenAPI, server."""
