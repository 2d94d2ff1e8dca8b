"""The limits of a search in time and money, as the controller asks for them. hpo.cluster.budget measures both."""

from __future__ import annotations

from typing import Protocol


class SearchBudget(Protocol):
    """Says what the rest of the time and the money allows."""

    def allows_new_trials(self) -> bool:
        """Whether another trial may begin."""

    def allows_running_trials(self) -> bool:
        """Whether running trials may continue and unfinished ones may be restarted."""


class UnlimitedBudget:
    """Allows everything."""

    def allows_new_trials(self) -> bool:
        """See SearchBudget."""
        return True

    def allows_running_trials(self) -> bool:
        """See SearchBudget."""
        return True
