"""When a search falls back to on-demand nodes and returns from them, and what trials wait for, in words. Pure: what is
seen and the time go in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpo.cluster.cluster_state import MARKET, ON_DEMAND, SPOT, ClusterSnapshot


@dataclass(frozen=True, kw_only=True, slots=True)
class SpotShortage:
    """Of spot nodes: what was seen, and what the autoscaler is asked for because of it."""

    since: float | None = None  # trials have waited without a break, and no spot node came
    spot: frozenset[str] = frozenset()  # nodes that were there
    on_demand: frozenset[str] = frozenset()
    asked: int = 0  # places for trials on on-demand nodes
    has_asked: bool = False  # ever
    borrowed: frozenset[str] = frozenset()  # on-demand nodes that came since

    def wants(self, trials: int) -> dict[str, int]:
        """Places, by market; trials: all that run or wait. Spot as long as anything is borrowed: trials that have their
        place do not make the autoscaler try."""
        return {ON_DEMAND: self.asked, SPOT: trials if self.asked or self.borrowed else 0}


def update_shortage(
    before: SpotShortage,
    sight: ClusterSnapshot,
    *,
    running: Mapping[int, str],
    waiting: int,
    starting: int,
    now: float,
    after: float,
) -> SpotShortage:
    """What there is now. running: trials and their nodes; waiting: trials that have none; starting: those that have one
    and no process yet; after: seconds of patience.

    A spot node that comes ends it, also where it is too small for all: a new drought must last as long again.
    """
    spot, on_demand = _of(sight, SPOT), _of(sight, ON_DEMAND)
    came = on_demand - before.on_demand if before.has_asked else frozenset()
    borrowed = before.borrowed & on_demand | came
    is_back = bool(spot - before.spot)
    since = None if not waiting else now if is_back or before.since is None else before.since
    lent = sum(node in borrowed for node in running.values())
    lasts = before.asked > 0 or (since is not None and now - since >= after)
    asked = waiting + starting + lent if lasts and not is_back else 0
    return SpotShortage(
        since=since,
        spot=spot,
        on_demand=on_demand,
        asked=asked,
        has_asked=before.has_asked or asked > 0,
        borrowed=borrowed,
    )


def node_to_release(
    state: SpotShortage, sight: ClusterSnapshot, running: Mapping[int, str], free_spot: int
) -> str | None:
    """A borrowed node whose trials have room on spot nodes again; one at a time, so that each finds its place."""
    if state.asked or state.since is not None:
        return None
    staying = {node.id for node in sight.nodes if not node.draining} & state.borrowed
    lent = {node: sum(at == node for at in running.values()) for node in sorted(staying)}
    if any(node.draining and node.id in running.values() for node in sight.nodes):
        return None  # the one before is not done yet
    return next((node for node, trials in lent.items() if 0 < trials <= free_spot), None)


def _of(sight: ClusterSnapshot, market: str) -> frozenset[str]:
    return frozenset(node.id for node in sight.nodes if node.labels.get(MARKET) == market and not node.is_head)


def describe_pending(numbers: Sequence[int], cpus: float, gpus: float, sight: ClusterSnapshot, asked: int = 0) -> str:
    """`trial 5 waits for 1 GPU: none free, 2 nodes are starting`; empty where none waits. asked: on-demand places."""
    if not numbers:
        return ""
    one = len(numbers) == 1
    who = f"trial {numbers[0]} waits" if one else f"trials {_listed(numbers)} wait"
    what = _count(gpus, "GPU") if gpus else _count(cpus, "CPU")
    free = sight.free(cpus, gpus)
    told = ["none free" if not free else f"room for {free}"]
    if starting := len(sight.starting):
        told.append(f"{starting} {'node is' if starting == 1 else 'nodes are'} starting")
    if sight.asked:
        told.append(f"{sight.asked} more asked for" if starting else f"{_count(sight.asked, 'node')} asked for")
    if sight.refused:
        told.append(f"the cloud says {sight.refused}")
    if asked:
        told.append(f"on-demand asked for, too, for want of spot: {_count(asked, 'place')}")
    return f"{who} for {what}{'' if one else ' each'}: {', '.join(told)}"


def _listed(numbers: Sequence[int]) -> str:
    shown = [str(number) for number in numbers[:3]]
    more = len(numbers) - len(shown)
    return f"{', '.join(shown[: None if more else -1])} and {f'{more} more' if more else shown[-1]}"


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"
