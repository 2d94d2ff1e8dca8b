"""Checks of a search before anything starts: first its request, then its images, search space and W&B account."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import search_spaces
from hpo.policy import suggestions
from hpo.policy.search_config import SearchConfig, check_name
from hpo.store.object_storage import Storage
from hpo.store.search_file import check_compatible, check_free
from hpo.store.study_replication import find_search, open_storage, similar_name
from hpo.tune import ray_session
from model.common.errors import ConfigError, ErrorCollector
from model.config import TrainConfig
from model.data.image_folder import check_layout
from model.data.image_sets import Images
from model.data.memory_mapped import PixelFiles
from model.generator import Generator
from model.latency import check_measuring


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchRequest:
    """A request without errors."""

    name: str
    runs: Path
    storage: Storage | None
    exists: bool  # so the search is continued
    options: Mapping[str, Any]  # fields of SearchConfig that differ from the defaults or from search.json


def check_request(
    name: str, runs: Path, options: Mapping[str, Any], address: str | None, errors: ErrorCollector
) -> SearchRequest:
    """Check everything about a request that needs no images.

    Args:
        options: Fields of SearchConfig that the user gave.
        address: Address of the storage.
        errors: Those of the command line.

    Raises:
        ConfigError: Lists all errors.
        RecordError: The search exists, and its search.json is damaged.
        StorageError: The storage cannot be reached.
    """
    location = ErrorCollector()
    location.attempt(check_name, name)
    storage = location.attempt(open_storage, address, runs)
    existing = None
    if not location:
        existing = find_search(runs, name, storage)
        if existing is None:
            location.attempt(_check_new_name, name, runs, options, storage)
    errors.include(location)
    current = existing[1] if existing else SearchConfig()
    if "set" in options:  # a setting that is given again leaves the others as they are
        options = {**options, "set": {**current.set, **options["set"]}}
    search = errors.attempt(replace, current, **options)
    if existing:
        errors.attempt(check_compatible, name, *existing, options)
    errors.attempt(suggestions.check_space, search, current, options)
    if search:
        errors.attempt(suggestions.check_plugins, search)
    errors.attempt(check_layout, options.get("data", current.data))
    if search:
        errors.attempt(ray_session.check_address, search, is_new=existing is None)
    errors.raise_if_any()
    return SearchRequest(name=name, runs=runs, storage=storage, exists=existing is not None, options=options)


def load_inputs(search: SearchConfig, pixel_files: PixelFiles) -> tuple[search_spaces.Space, Images]:
    """Load the search space and the images, and check that the one can be trained on the other. Check the W&B account.

    Raises:
        ConfigError: Lists all errors.
    """
    from hpo.tracking.wandb_login import log_in, remove_inherited_settings  # noqa: PLC0415 - an optional service

    space, errors = search_spaces.load(search.space), ErrorCollector()
    images = errors.attempt(_load_images, search, space, pixel_files)
    remove_inherited_settings(search.wandb)
    if search.wandb == "online":
        errors.attempt(log_in)
    if images is None or errors:
        raise errors.as_error()
    return space, images


def _check_new_name(name: str, runs: Path, options: Mapping[str, Any], storage: Storage | None) -> None:
    """Raise ConfigError for a name that is taken, or that is probably a misspelt one."""
    check_free(runs / name)
    if not options and (similar := similar_name(name, runs, storage)):
        raise ConfigError(
            f"{name}: there is no such search, but there is {similar}, which `hpo search {similar}` continues. To "
            f"begin a search with a name so similar, give any option, such as --trials {SearchConfig().trials}"
        )


def _load_images(search: SearchConfig, space: search_spaces.Space, pixel_files: PixelFiles) -> Images:
    base, images = search.base_config(), search.data_config().load(pixel_files)
    for sample in space.check(base, search.set)["samples"]:
        _check_sample(sample, base, images, search)
    return images


def _check_sample(sample: Mapping[str, Any], base: TrainConfig, images: Images, search: SearchConfig) -> None:
    """Raise ConfigError if a configuration that the space suggests cannot be trained on the images."""
    config = TrainConfig.from_dict({**base.as_dict(), **sample["yields"]})
    try:
        _check_fit(config, images, search)
    except ConfigError as error:
        if not sample["yields"].keys() & {"batch_size", "depth", "blocks"}:
            raise
        raise ConfigError(f"the space suggests {sample['params']}, which cannot be trained: {error}") from None


def _check_fit(config: TrainConfig, images: Images, search: SearchConfig) -> None:
    if config.batch_size > len(images.train):
        raise ConfigError(f"batch_size={config.batch_size}: above the {len(images.train):,} training images")
    channels, size, _ = images.shape
    with torch.device("meta"):  # allocates nothing
        generator = Generator(replace(config, width=1), channels=channels, image_size=size)
    check_measuring(search.latency_size or size, search.latency_threads, generator.size_multiple)  # of every export
