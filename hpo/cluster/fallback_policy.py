"""When a search requests on-demand nodes in place of spot nodes, when it gives them back, and what pending trials wait
for. Pure: snapshots and the time are arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpo.cluster.cluster_state import MARKET, ON_DEMAND, SPOT, ClusterSnapshot


@dataclass(frozen=True, kw_only=True, slots=True)
class SpotShortage:
    """What was observed at the last update, and what is requested because of it."""

    waiting_since: float | None = None  # trials have waited without a break, and no spot node has joined
    spot_nodes: frozenset[str] = frozenset()
    on_demand_nodes: frozenset[str] = frozenset()
    requested_slots: int = 0  # for trials, on on-demand nodes
    has_requested: bool = False  # ever
    fallback_nodes: frozenset[str] = frozenset()  # on-demand nodes that have joined since the first request

    def request(self, trials: int) -> dict[str, int]:
        """Slots to request by market, for all trials that run or wait. Spot slots are requested as long as fallback
        nodes are in use: trials that have a slot already do not make the autoscaler add spot nodes."""
        is_active = self.requested_slots or self.fallback_nodes
        return {ON_DEMAND: self.requested_slots, SPOT: trials if is_active else 0}


def update_shortage(
    before: SpotShortage,
    snapshot: ClusterSnapshot,
    *,
    running: Mapping[int, str],
    waiting: int,
    starting: int,
    now: float,
    patience: float,
) -> SpotShortage:
    """The state after another look at the cluster.

    A spot node that joins ends the shortage, even if it is too small for all: the next one must last as long again.

    Args:
        running: trials and their nodes.
        waiting: number of trials without a slot.
        starting: number of trials that have a slot and no process yet.
        now: seconds, on the clock of `before`.
        patience: seconds of waiting after which on-demand nodes are requested.
    """
    spot, on_demand = _workers(snapshot, SPOT), _workers(snapshot, ON_DEMAND)
    joined = on_demand - before.on_demand_nodes if before.has_requested else frozenset()
    fallback = before.fallback_nodes & on_demand | joined
    spot_joined = bool(spot - before.spot_nodes)
    since = None
    if waiting:
        since = now if spot_joined or before.waiting_since is None else before.waiting_since
    is_short = before.requested_slots > 0 or (since is not None and now - since >= patience)
    on_fallback = sum(node in fallback for node in running.values())
    requested = waiting + starting + on_fallback if is_short and not spot_joined else 0
    return SpotShortage(
        waiting_since=since,
        spot_nodes=spot,
        on_demand_nodes=on_demand,
        requested_slots=requested,
        has_requested=before.has_requested or requested > 0,
        fallback_nodes=fallback,
    )


def node_to_release(
    shortage: SpotShortage, snapshot: ClusterSnapshot, running: Mapping[int, str], free_spot_slots: int
) -> str | None:
    """A fallback node whose trials fit on spot nodes again. One at a time, so that each trial finds a slot."""
    if shortage.requested_slots or shortage.waiting_since is not None:
        return None
    if any(node.draining and node.id in running.values() for node in snapshot.nodes):
        return None  # the previous one is not empty yet
    staying = {node.id for node in snapshot.nodes if not node.draining} & shortage.fallback_nodes
    num_trials = {node: sum(at == node for at in running.values()) for node in sorted(staying)}
    return next((node for node, trials in num_trials.items() if 0 < trials <= free_spot_slots), None)


def _workers(snapshot: ClusterSnapshot, market: str) -> frozenset[str]:
    return frozenset(node.id for node in snapshot.nodes if node.labels.get(MARKET) == market and not node.is_head)


def describe_pending(
    numbers: Sequence[int], cpus: float, gpus: float, snapshot: ClusterSnapshot, on_demand_slots: int = 0
) -> str:
    """What pending trials wait for, such as `trial 5 waits for 1 GPU: none free, 2 nodes are starting`; empty without
    pending trials. on_demand_slots: those that were requested because of a spot shortage."""
    if not numbers:
        return ""
    is_one = len(numbers) == 1
    trials = f"trial {numbers[0]} waits" if is_one else f"trials {_enumerate(numbers)} wait"
    resources = _count(gpus, "GPU") if gpus else _count(cpus, "CPU")
    free = snapshot.free_slots(cpus, gpus)
    reasons = ["none free" if not free else f"room for {free}"]
    if starting := len(snapshot.starting):
        reasons.append(f"{starting} {'node is' if starting == 1 else 'nodes are'} starting")
    if snapshot.requested:
        reasons.append(f"{f'{snapshot.requested} more' if starting else _count(snapshot.requested, 'node')} requested")
    if snapshot.launch_failure:
        reasons.append(f"the cloud reports: {snapshot.launch_failure}")
    if on_demand_slots:
        reasons.append(f"{_count(on_demand_slots, 'on-demand slot')} requested for lack of spot")
    return f"{trials} for {resources}{'' if is_one else ' each'}: {', '.join(reasons)}"


def _enumerate(numbers: Sequence[int]) -> str:
    shown = [str(number) for number in numbers[:3]]
    more = len(numbers) - len(shown)
    return f"{', '.join(shown[: None if more else -1])} and {f'{more} more' if more else shown[-1]}"


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"
