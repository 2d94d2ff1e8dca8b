"""`hpo search first` with a lease and a timeout that suit a test: python stored_search.py TIMEOUT_SECONDS OPTION..."""

from __future__ import annotations

import sys

from hpo.cli.commands import main
from hpo.store import lease, study_replication

if __name__ == "__main__":
    lease.HEARTBEAT_SECONDS, lease.EXPIRY_SECONDS = 0.5, 5.0
    study_replication.TIMEOUT_SECONDS = float(sys.argv[1])
    sys.exit(main(["search", "first", *sys.argv[2:]]))
