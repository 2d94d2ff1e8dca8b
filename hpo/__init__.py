"""The search: Ray Tune runs trials, Optuna suggests them, the record loses nothing."""

from hpo import environment

environment.prepare_process()
