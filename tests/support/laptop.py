"""Where the user sits: outside the cluster, in a home with the token and nothing else of this machine."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Laptop:
    """Runs commands as the user would: in the clone, in a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home, self.token = home, home / ".ray"
        self.token.mkdir(parents=True)
        self.token.joinpath("auth_token").write_text(secrets.token_hex(32))
        self.token.joinpath("auth_token").chmod(0o600)
        scratch = home / "tmp"  # Ray leaves the state of its clusters there
        scratch.mkdir()
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HOME": str(home),
            "TMPDIR": str(scratch),
            "RAY_TMPDIR": str(scratch),
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def run(self, *command: str, timeout: float = 240, exit_code: int = 0) -> str:
        """Its standard output. AssertionError, with all it said, for another exit code; subprocess.TimeoutExpired."""
        done = subprocess.run(
            command,
            check=False,
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        told = f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == exit_code, told
        return done.stdout

    def hpo(self, *arguments: str, **how: Any) -> str:
        """how: as above."""
        return self.run(sys.executable, "-m", "hpo.cli", *arguments, **how)

    def json(self, *arguments: str) -> Any:
        """What `hpo ... --json` says."""
        return json.loads(self.hpo(*arguments, "--json"))
