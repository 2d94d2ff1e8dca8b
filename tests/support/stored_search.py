"""`hpo search first`, whose lease and patience are of a test's size: python stored_search.py PATIENCE OPTION..."""

from __future__ import annotations

import sys

from hpo.cli.commands import main
from hpo.store import lease, replication

if __name__ == "__main__":
    lease.HEARTBEAT_SECONDS, lease.EXPIRY_SECONDS = 0.5, 5.0
    replication.TIMEOUT_SECONDS = float(sys.argv[1])
    sys.exit(main(["search", "first", *sys.argv[2:]]))
