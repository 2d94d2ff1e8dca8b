"""W&B's environment before a search: the API key, and settings that another job has left."""

from __future__ import annotations

import base64
import json
import logging
import os
import urllib.error
import urllib.request

from model.common.errors import ConfigError

log = logging.getLogger(__name__)

_ANSWER_SECONDS = 5.0  # for a server to say whether it knows the key
_KEY = "WANDB_API_KEY"
_FORMER_MODES = {"run": "online", "dryrun": "offline"}
_SETTINGS_OF_ONE_RUN = (
    "WANDB_RUN_ID", "WANDB_NAME", "WANDB_RUN_NAME", "WANDB_NOTES", "WANDB_RUN_NOTES", "WANDB_TAGS", "WANDB_RUN_TAGS",
    "WANDB_RUN_GROUP", "WANDB_JOB_TYPE", "WANDB_RUN_JOB_TYPE", "WANDB_JOB_NAME", "WANDB_RESUME", "WANDB_RESUME_FROM",
    "WANDB_FORK_FROM", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_LAUNCH", "WANDB_LAUNCH_CONFIG_PATH",
    "WANDB_CONFIG", "WANDB_CONFIG_PATHS", "WANDB_PROGRAM",
)  # fmt: skip


def remove_inherited_settings(wandb: str) -> None:
    """Remove from the environment what another job has set for its one run, and log a warning.

    W&B would apply these settings to every run of the search. Call this before W&B is imported. A WANDB_MODE that
    contradicts the search's --wandb is named, too.
    """
    mode = os.environ.pop("WANDB_MODE", wandb)
    if _FORMER_MODES.get(mode, mode) != wandb:
        log.warning("W&B: ignoring WANDB_MODE=%s, because --wandb is %s", mode, wandb)
    if wandb == "disabled":
        return
    removed = [name for name in _SETTINGS_OF_ONE_RUN if os.environ.pop(name, None) is not None]
    if removed:
        log.warning("W&B: ignoring %s: a search has many runs and names them itself", ", ".join(removed))


def log_in() -> tuple[str, str | None]:
    """Find the API key where W&B looks for one, and check it with the server if that answers.

    From then on the key is in this process's memory only: processes that start later, such as Ray's, do not inherit it.
    Returns the server's address and the key, which is None if W&B has other credentials.

    Raises:
        ConfigError: there is no key, it is malformed or refused, or the server's address is invalid.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb  # noqa: PLC0415 - takes seconds, which a search without W&B need not wait

    from hpo.tracking import wandb_internals  # noqa: PLC0415

    try:
        url = wandb_internals.server_url()
        is_found, key = wandb_internals.find_credentials(url)
    except (wandb.errors.AuthenticationError, ValueError) as error:  # ValueError: WANDB_BASE_URL is invalid
        raise ConfigError(f"W&B: {error}") from None
    os.environ.pop(_KEY, None)
    if not is_found:
        raise ConfigError(
            f"W&B: there is no API key for {url}. Set {_KEY}, or run `wandb login`, which stores it in ~/.netrc. "
            "--wandb offline needs no key, and `hpo sync` sends the runs later"
        )
    if key is not None and _is_refused(url, key):
        raise ConfigError(f"W&B: {url} refuses the API key; --wandb offline needs none")
    return url, key


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """See HTTPRedirectHandler. Redirects are not followed, because the key would be sent along."""


def _is_refused(url: str, key: str) -> bool:
    """Whether the server refuses the key. A server that is slow, unreachable or failing has not refused it."""
    request = urllib.request.Request(
        f"{url.rstrip('/')}/graphql",
        data=json.dumps({"query": "query Viewer { viewer { id } }"}).encode(),
        headers={
            "Authorization": "Basic " + base64.b64encode(f"api:{key}".encode()).decode(),
            "Content-Type": "application/json",
        },
    )
    try:
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=_ANSWER_SECONDS) as response:
            answer = json.load(response)
        return answer["data"]["viewer"] is None
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except (OSError, ValueError, KeyError, TypeError):
        return False
