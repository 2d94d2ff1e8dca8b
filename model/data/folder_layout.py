"""What the names in a folder of images say: splits, pairs, and what looks like either and is none. No image is read."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SPLITS = ("train", "validation", "test")
NOISY, CLEAN = "noisy", "clean"
_SHOWN = 5  # names in a message


@dataclass(frozen=True, slots=True)
class Layout:
    """Of a folder."""

    groups: dict[tuple[str, str], dict[str, str]]  # paths by (split or "", name), then by kind: clean, noisy of pairs
    pooled: tuple[str, ...]  # folders at the top of which no split was made
    splits: dict[str, str]  # the owner's own, to their folders


def parse_layout(paths: Collection[str], mistakes: list[str]) -> Layout:
    """Of the images' paths, `/` between their parts."""
    tops = {path: _top(path) for path in sorted(paths)}
    named = {top: split for top in tops.values() if (split := _SPLIT_OF.get(top.casefold()))}
    splits = {split: top for top, split in named.items()}
    has_pairs = any(part.casefold() in _KINDS for path in paths for part in path.split("/")[:-1])
    alike = _looks_like_splits(set(tops.values()) - named.keys(), alone=len(set(tops.values())) == 1)
    if not named:
        mistakes += alike.values()
    elif loose := [path for path, top in tops.items() if top not in named]:
        beside = " and ".join(f"{top}/" for top in named)
        hint = alike.get(tops[loose[0]])
        mistakes.append(f"{loose[0]}: beside {beside}; put each image into one of {', '.join(SPLITS)}")
        mistakes += [hint] if hint else []
    if named and "train" not in splits:
        mistakes.append(f"{' and '.join(f'{top}/' for top in named)} without train/: put the other images into train/")
    mistakes += [
        f"{top}/ and {splits[split]}/: both name the {split} images; keep one of them"
        for top, split in named.items()
        if splits[split] != top
    ]
    groups: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    homeless = []
    for path in tops:
        split, kind, name = _placed(path, bool(named), has_pairs)
        if has_pairs and not kind:
            homeless.append(path)
            continue
        if splits.keys() == {"train"}:  # nothing is divided
            split = ""
        other = groups[split, name].setdefault(kind or CLEAN, path)
        if other != path:
            mistakes.append(f"{other} and {path}: are one image by their names; rename one")
    mistakes += [f"{path}: is neither in noisy/ nor in clean/, as the other images are" for path in homeless]
    if homeless or not has_pairs:
        mistakes += _look_like_pairs(paths)
    pooled = () if splits.keys() - {"train"} else tuple(dict.fromkeys(f"{top}/" for top in tops.values() if top))
    return Layout(_partnered(groups, mistakes) if has_pairs else dict(groups), pooled, splits)


_SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}  # in any case
_KINDS = (NOISY, CLEAN)  # in any case
# Words by which people call these folders, too. They may as well mean something else, so that nothing is guessed.
_ALIKE = {
    NOISY: "noise noised lq lr low input inputs degraded corrupted noisyimages",
    CLEAN: "clear cleaned cleanimages gt hq hr high target targets output outputs groundtruth reference original",
    "train": "trains trainset trainsets traindata",
    "validation": "valset validset validate dev eval evaluation",
    "test": "tests testset testsets testdata holdout",
}
_MEANT = {word: name for name, words in _ALIKE.items() for word in words.split()}


def _top(path: str) -> str:
    """The folder that may name a split; empty: there is none."""
    folders = [*path.split("/")[:-1], "", ""]
    return folders[1] if folders[0].casefold() in _KINDS else folders[0]


def _placed(path: str, has_splits: bool, has_pairs: bool) -> tuple[str, str, str]:
    """Split, kind and the rest; the first two in either order, each empty where there is none."""
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


def _meant(folder: str, names: Collection[str]) -> str | None:
    """Which of the names that of a folder has in it, or a word for it: test_images, trainH, GT_SRGB."""
    words = [word.casefold() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", folder)]
    for word in (*words, "".join(words)):
        found = _SPLIT_OF.get(word) or (word if word in _KINDS else _MEANT.get(word))
        if found in names:
            return found
    return None


def _looks_like_splits(tops: Collection[str], *, alone: bool) -> dict[str, str]:
    """What to tell of folders whose names nearly are those of splits, by their names. alone: it is the only one."""
    found = {top: _meant(top, SPLITS) for top in sorted(tops)} if not alone else {}
    return {
        top: f"{top}/: its name speaks of {split} images; call it {split}/, or else by a name without that word"
        for top, split in found.items()
        if split
    }


def _look_like_pairs(paths: Collection[str]) -> list[str]:
    """What to tell of folders side by side that nearly are noisy/ and clean/."""
    beside: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))  # files, by where, and by folder
    for path in paths:
        *parts, name = path.split("/")
        for depth in range(len(parts)):
            beside["/".join(parts[:depth])][parts[depth]].add("/".join([*parts[depth + 1 :], name]))
        beside["/".join(parts)][""].add(name)
    told = []
    for where, folders in sorted(beside.items()):
        meant = {folder: kind for folder in sorted(folders) if (kind := _meant(folder, _KINDS))}
        for folder, kind in meant.items():
            if folder.casefold() in _KINDS:
                continue
            others = [other for other in folders if other != folder]
            if any(meant.get(other) not in (None, kind) or folders[folder] & folders[other] for other in others):
                place = "/".join(part for part in (where, folder) if part)
                told.append(
                    f"{place}/: looks like one half of noisy and clean pairs; call it {kind}/, beside "
                    f"{NOISY if kind == CLEAN else CLEAN}/, or else by a name without that word"
                )
    return told


def _partnered(
    groups: Mapping[tuple[str, str], dict[str, str]], mistakes: list[str]
) -> dict[tuple[str, str], dict[str, str]]:
    """Pairs alone. Partners have the same name; where that leaves two alone, but for its ending."""
    alone: dict[tuple[str, str], list[tuple[str, str, str]]] = defaultdict(list)
    for (split, name), files in groups.items():
        if len(files) == 1:
            alone[split, name.rpartition(".")[0]] += [(kind, path, name) for kind, path in files.items()]
    whole = {key: files for key, files in groups.items() if len(files) == 2}
    for (split, _), halves in sorted(alone.items()):
        if sorted(kind for kind, *_ in halves) == [CLEAN, NOISY]:
            name = min(halves)[2]  # the clean one's
            whole[split, name] = {kind: path for kind, path, _ in halves}
        else:
            other = {NOISY: CLEAN, CLEAN: NOISY}
            mistakes += [f"{path}: has no partner in {other[kind]}/" for kind, path, _ in halves]
    return whole


def describe_skipped(paths: Sequence[str]) -> list[str]:
    """A line of what is no image by its name: by reason, each with examples; none where there is nothing."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        name = path.rstrip("/").rpartition("/")[2]
        reason = "links to folders" if path.endswith("/") else Path(name).suffix or "without an ending"
        reasons["hidden" if name.startswith(".") or name.lower() in SYSTEM_FILES else reason].append(path)
    if not reasons:
        return []
    kinds = "; ".join(f"{reason}: {len(names):,} ({list_some(names)})" for reason, names in sorted(reasons.items()))
    return [f"skipped, for their names: {kinds}"]


SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini")  # what Windows leaves in folders, in any case


def list_some(names: Sequence[str]) -> str:
    """The first ones, and how many more there are."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")
