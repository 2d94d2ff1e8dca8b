"""Which side counts when a driver's folder and its storage meet."""

from __future__ import annotations

import pytest

from hpo.store.reconciliation import Resolution, plan_reconciliation

OLD, LAST = "000001-aaaaaaaa", "000002-bbbbbbbb"


@pytest.mark.parametrize(
    ("local", "remote", "plan"),
    [
        pytest.param((None, None), (None, None), Resolution.IMPORT, id="neither has it: it has just begun"),
        pytest.param(("a", None), (None, None), Resolution.IMPORT, id="it began without a storage"),
        pytest.param(("a", LAST), (None, None), Resolution.REFUSE_DELETED, id="it was deleted from the storage"),
        pytest.param((None, None), ("a", LAST), Resolution.PULL, id="the folder is empty"),
        pytest.param(("a", None), ("a", LAST), Resolution.PULL, id="the folder was never used with the storage"),
        pytest.param(("a", OLD), ("a", LAST), Resolution.PULL, id="another driver came after the folder's"),
        pytest.param(("a", OLD), ("a", None), Resolution.PULL, id="the storage has no claim"),
        pytest.param(("b", None), ("a", LAST), Resolution.REFUSE_OTHER, id="another search of this name"),
        pytest.param(
            ("b", LAST), ("a", LAST), Resolution.REFUSE_OTHER, id="another search, whoever was the last driver"
        ),
        pytest.param(("a", LAST), ("a", LAST), Resolution.KEEP_LOCAL, id="the folder's driver was the last"),
        pytest.param((None, LAST), ("a", LAST), Resolution.KEEP_LOCAL, id="the same, and opening the record will fail"),
        pytest.param(("a", LAST, "damaged"), ("a", LAST), Resolution.REPAIR, id="its study is damaged"),
        pytest.param((None, LAST, "damaged"), ("a", LAST), Resolution.REPAIR, id="its search.json is damaged"),
        pytest.param(("a", LAST, "damaged"), ("a", LAST, False), Resolution.REFUSE_DAMAGED, id="and there is no copy"),
    ],
)
def test_one_side_counts_or_the_driver_is_refused(local, remote, plan):
    local_id, local_claim, *damage = local
    stored_id, last_claim, *copy = remote
    decided = plan_reconciliation(
        local_id=local_id,
        local_claim=local_claim,
        is_damaged=bool(damage),
        stored_id=stored_id,
        last_claim=last_claim,
        has_copy=copy != [False],
    )
    assert decided is plan
