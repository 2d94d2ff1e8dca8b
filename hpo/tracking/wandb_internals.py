"""All private names of W&B that a search uses (wandb 0.31); tests/hpo/tracking/test_wandb_internals.py checks them.

Import this module only where W&B is used: importing wandb takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import wandb
from wandb.apis.public.service_api import ServiceApi
from wandb.sdk import wandb_setup
from wandb.sdk.lib import wbauth


def server_url() -> str:
    """The server's address from the environment and W&B's settings. Raises ValueError."""
    return str(wandb_setup.singleton().settings.base_url)


def find_credentials(url: str) -> tuple[bool, str | None]:
    """Look for credentials where W&B does, without asking the user. Raises wandb.errors.AuthenticationError.

    Returns whether there are any, and the API key, which is None for other kinds of credentials.
    """
    credentials = wbauth.authenticate_session(host=url, source="hpo", prompt=False)
    key = credentials.api_key if isinstance(credentials, wbauth.AuthApiKey) else None
    return credentials is not None, key


def query(text: str, variables: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Send a GraphQL query to the server, which has so many seconds to answer."""
    api = ServiceApi(wandb_setup.singleton().settings, timeout=seconds)
    result: dict[str, Any] = api.execute_graphql(text, variables)
    return result


def abandon(runs: Iterable[Any]) -> None:
    """Drop open runs and end W&B's process, which would try for a week to deliver them."""
    for run in runs:  # its thread would log errors
        if run._run_status_checker is not None:
            run._run_status_checker.stop()
    service = wandb_setup.singleton()._connection
    if service is not None and service._proc is not None:
        service._proc._process.kill()
    with suppress(Exception, SystemExit):  # it fails because the process is gone
        wandb.teardown()
