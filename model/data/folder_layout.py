"""The splits and the noisy/clean pairs of a folder of images, by the names of its files. No image is read."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SPLITS = ("train", "validation", "test")
NOISY, CLEAN = "noisy", "clean"
SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini")  # Windows leaves them in folders, in any case
_SHOWN = 5  # names in a message
_KINDS = (NOISY, CLEAN)  # in any case
_SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}  # in any case
# People use these words for the same folders. They may also mean something else, so they are errors, not guesses.
_SIMILAR = {
    NOISY: "noise noised lq lr low input inputs degraded corrupted noisyimages",
    CLEAN: "clear cleaned cleanimages gt hq hr high target targets output outputs groundtruth reference original",
    "train": "trains trainset trainsets traindata",
    "validation": "valset validset validate dev eval evaluation",
    "test": "tests testset testsets testdata holdout",
}
_MEANINGS = {word: name for name, words in _SIMILAR.items() for word in words.split()}


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of a folder."""

    groups: dict[tuple[str, str], dict[str, str]]  # by (split or "", name): the paths, by clean and noisy
    pooled: tuple[str, ...]  # top folders, if they do not name splits
    splits: dict[str, str]  # the folder of each split that the user made


def parse_layout(paths: Collection[str], errors: list[str]) -> Layout:
    """Parse the paths of images, with `/` between their parts; append the problems to `errors`."""
    tops = {path: _top_folder(path) for path in sorted(paths)}
    named = {top: split for top in tops.values() if (split := _SPLIT_OF.get(top.casefold()))}
    splits = {split: top for top, split in named.items()}
    errors += _split_errors(tops, named, splits)
    has_pairs = any(part.casefold() in _KINDS for path in paths for part in path.split("/")[:-1])
    groups: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    unpaired = []
    for path in tops:
        split, kind, name = _parse_path(path, bool(named), has_pairs)
        if has_pairs and not kind:
            unpaired.append(path)
            continue
        if splits.keys() == {"train"}:  # nothing is divided
            split = ""
        other = groups[split, name].setdefault(kind or CLEAN, path)
        if other != path:
            errors.append(f"{other} and {path}: name the same image; rename one")
    errors += [f"{path}: is neither in noisy/ nor in clean/, as the other images are" for path in unpaired]
    if unpaired or not has_pairs:
        errors += _pair_hints(paths)
    pooled = () if splits.keys() - {"train"} else tuple(dict.fromkeys(f"{top}/" for top in tops.values() if top))
    return Layout(_match_pairs(groups, errors) if has_pairs else dict(groups), pooled, splits)


def _top_folder(path: str) -> str:
    """The folder that may name a split, or an empty string."""
    folders = [*path.split("/")[:-1], "", ""]
    return folders[1] if folders[0].casefold() in _KINDS else folders[0]


def _split_errors(tops: Mapping[str, str], named: Mapping[str, str], splits: Mapping[str, str]) -> list[str]:
    """Check the top folder of each path; named: those that name a split; splits: the folder of each split."""
    errors: list[str] = []
    folders = " and ".join(f"{top}/" for top in named)
    hints = {
        top: f"{top}/: its name suggests {split} images; rename it to {split}/, or to a name without that word"
        for top in sorted(set(tops.values()) - named.keys())
        if len(set(tops.values())) > 1 and (split := _meaning(top, SPLITS))
    }
    if not named:
        errors += hints.values()
    elif loose := [path for path, top in tops.items() if top not in named]:
        errors.append(f"{loose[0]}: beside {folders}; put each image into one of {', '.join(SPLITS)}")
        errors += [hint for top, hint in hints.items() if top == tops[loose[0]]]
    if named and "train" not in splits:
        errors.append(f"{folders} without train/: put the other images into train/")
    errors += [
        f"{top}/ and {splits[split]}/: both name the {split} images; keep one of them"
        for top, split in named.items()
        if splits[split] != top
    ]
    return errors


def _parse_path(path: str, has_splits: bool, has_pairs: bool) -> tuple[str, str, str]:
    """Split, kind and the rest; the first two come in either order, and may be empty."""
    split = kind = ""
    while "/" in path:
        top, _, rest = path.partition("/")
        if has_splits and not split and top.casefold() in _SPLIT_OF:
            split = _SPLIT_OF[top.casefold()]
        elif has_pairs and not kind and top.casefold() in _KINDS:
            kind = top.casefold()
        else:
            break
        path = rest
    return split, kind, path


def _meaning(folder: str, names: Collection[str]) -> str | None:
    """The name, out of `names`, that a folder's name has as a word, or a similar word: test_images, trainH, GT_SRGB."""
    words = [word.casefold() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", folder)]
    meanings = {**_MEANINGS, **_SPLIT_OF, NOISY: NOISY, CLEAN: CLEAN}
    return next((meanings[word] for word in (*words, "".join(words)) if meanings.get(word) in names), None)


def _pair_hints(paths: Collection[str]) -> list[str]:
    """Errors for folders side by side with names similar to noisy/ and clean/."""
    siblings: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))  # files, by parent and folder
    for path in paths:
        *parts, name = path.split("/")
        for depth in range(len(parts)):
            siblings["/".join(parts[:depth])][parts[depth]].add("/".join([*parts[depth + 1 :], name]))
        siblings["/".join(parts)][""].add(name)
    errors = []
    for parent, folders in sorted(siblings.items()):
        meanings = {folder: kind for folder in sorted(folders) if (kind := _meaning(folder, _KINDS))}
        for folder, kind in meanings.items():
            if folder.casefold() in _KINDS:
                continue
            others = [other for other in folders if other != folder]
            if any(meanings.get(other) not in (None, kind) or folders[folder] & folders[other] for other in others):
                errors.append(
                    f"{f'{parent}/' if parent else ''}{folder}/: looks like one half of noisy and clean pairs; rename "
                    f"it to {kind}/, beside {NOISY if kind == CLEAN else CLEAN}/, or to a name without that word"
                )
    return errors


def _match_pairs(
    groups: Mapping[tuple[str, str], dict[str, str]], errors: list[str]
) -> dict[tuple[str, str], dict[str, str]]:
    """Return the pairs. Partners have the same name; the suffix may differ if each is the only candidate."""
    pairs = {key: files for key, files in groups.items() if len(files) == 2}
    singles: dict[tuple[str, str], list[tuple[str, str, str]]] = defaultdict(list)
    for (split, name), files in groups.items():
        if len(files) == 1:
            singles[split, name.rpartition(".")[0]] += [(kind, path, name) for kind, path in files.items()]
    for (split, _), halves in sorted(singles.items()):
        if sorted(kind for kind, *_ in halves) == [CLEAN, NOISY]:
            name = min(halves)[2]  # the clean one's
            pairs[split, name] = {kind: path for kind, path, _ in halves}
        else:
            other = {NOISY: CLEAN, CLEAN: NOISY}
            errors += [f"{path}: has no partner in {other[kind]}/" for kind, path, _ in halves]
    return pairs


def describe_skipped(paths: Sequence[str]) -> list[str]:
    """A line on the files that are not images by their names, by reason and with examples; no line without files."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        name = path.rstrip("/").rpartition("/")[2]
        reason = "links to folders" if path.endswith("/") else Path(name).suffix or "without an ending"
        reasons["hidden" if name.startswith(".") or name.lower() in SYSTEM_FILES else reason].append(path)
    kinds = "; ".join(f"{reason}: {len(names):,} ({list_some(names)})" for reason, names in sorted(reasons.items()))
    return [f"skipped, for their names: {kinds}"] if kinds else []


def list_some(names: Sequence[str]) -> str:
    """The first names, and the number of the others."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")
