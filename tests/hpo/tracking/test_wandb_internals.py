"""The private names of W&B that hpo/tracking/wandb_internals.py uses exist in the installed version."""

from __future__ import annotations

import inspect

import wandb
from wandb.apis.public.service_api import ServiceApi
from wandb.sdk import wandb_run, wandb_setup
from wandb.sdk.lib import wbauth
from wandb.sdk.lib.service import service_connection, service_process

VERSION = f"wandb {wandb.__version__}: adapt hpo/tracking/wandb_internals.py"


def parameters(function: object) -> set[str]:
    return set(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_wandb_still_has_the_private_names_that_a_search_uses():
    assert parameters(wbauth.authenticate_session) >= {"host", "source", "prompt"}, VERSION
    assert isinstance(inspect.getattr_static(wbauth.AuthApiKey, "api_key"), property), VERSION
    assert parameters(ServiceApi) >= {"settings", "timeout"}, VERSION
    assert parameters(ServiceApi.execute_graphql) >= {"query", "variables"}, VERSION
    assert callable(wandb_setup.singleton), VERSION
    for attribute, owner in {
        "_run_status_checker": wandb_run.Run,
        "_connection": wandb_setup._WandbSetup,
        "_proc": service_connection.ServiceConnection,
        "_process": service_process.ServiceProcess,
    }.items():
        assert f"self.{attribute} = " in inspect.getsource(owner) or attribute in owner.__annotations__, (
            f"{owner.__name__}.{attribute} is missing in {VERSION}"
        )
