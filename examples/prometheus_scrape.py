"""What Prometheus is to scrape, as a file for its file_sd_configs: every instance with the tag `metrics`.

python examples/prometheus_scrape.py targets.json    # again and again, such as by a timer
"""

import json
import sys
from pathlib import Path
from urllib.parse import urlsplit

from registryd.client import SyncRegistryClient


def main(path: Path) -> None:
    with SyncRegistryClient() as client:
        found = client.instances(tags="metrics")
    targets = [
        {
            "targets": [urlsplit(one.endpoint).netloc],
            "labels": {"job": one.name, "instance_id": one.instance_id, "zone": one.zone or ""},
        }
        for one in found
    ]
    new = path.with_suffix(".new")
    new.write_text(json.dumps(targets, indent=2))
    new.replace(path)  # Prometheus never reads half a file
    print(f"{len(targets)} targets, {found.stale_for:.0f} s old {found.doubt}".rstrip())


main(Path(sys.argv[1]))
