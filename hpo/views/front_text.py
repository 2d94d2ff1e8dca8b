"""The exported front in words: a table of its members, and which of them most people choose between."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from hpo.policy.front_members import FrontMember
from hpo.policy.objectives import TRAINED, describe
from hpo.policy.pick import recommendations, sentences
from hpo.store.file_names import FRONT
from hpo.store.record import Record
from hpo.views.formatting import place_options


def front_text(record: Record, members: Sequence[FrontMember]) -> str:
    """The lines about the exported front at the end of a search."""
    search = record.search
    lines = [f"Front of {' and '.join(search.objectives)}, exported to {record.user_folder / FRONT}{_how(members[0])}"]
    lines += [front_table(record, members), "", *(f"{sentence}." for sentence in sentences(members, search))]
    picks = [pick.text for pick, _ in recommendations(members, search)]
    storage = record.storage.address if record.storage else None
    place = shlex.join([record.name, *place_options(record.user_folder.parent, storage)])
    return "\n".join([*lines, f"To copy one of them: hpo export {place} --pick {(picks or ['best'])[0]} --to DIR"])


def _how(member: FrontMember) -> str:
    if member.latency is None:
        return ""
    size, threads = member.latency["size"], member.latency["threads"]
    where = member.latency["processor"] if member.latency["device"] == "cpu" else member.latency["device"]
    return f"; latency of one {size}x{size} image, {threads} thread{'s' * (threads > 1)} of {where}"


def front_table(record: Record, members: Sequence[FrontMember]) -> str:
    """Markdown: each member's objectives, those that need training on the validation images, and its test metrics."""
    names = list(dict.fromkeys([*record.search.objectives, *(["latency"] if members[0].latency else [])]))
    heads = [f"{name}, validation" if name in TRAINED else name for name in names]
    lines = [f"| trial | {' | '.join(heads)} | SSIM, test | PSNR, test |", "|---:|" + "---:|" * (len(names) + 2)]
    for member in members:
        cells = [describe(name, _value(member, name)) for name in names]
        test = member.test or {}
        tested = [f"{test['ssim']:.4f}", describe("psnr", test["psnr_db"])] if test else ["", ""]
        lines.append(f"| {' | '.join([str(member.trial), *cells, *tested])} |")
    return "\n".join(lines)


def _value(member: FrontMember, name: str) -> float:
    return member.values[name] if name in member.values else float(member.figure(name) or 0)
