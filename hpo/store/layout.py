"""The names of the files in a search's folder, and of the facts that are noted on its study."""

from __future__ import annotations

STATUS_FILE = "status.json"

STUDY_FILE, LOCK_FILE = "study.db", "lock"

FINALISTS, FINAL = "finalists", "final"  # notes on the record; the final training has a folder of that name too
COLLAPSES = "final_collapses"  # as those: each time that a final training collapsed, and what was done then
LOST = "lost"  # as those: numbers of the trials whose best checkpoint was damaged or gone when the search ended
IMAGES = "images"  # as those: the digest of the images that its trials see
EXPORT = "export"  # the folder of the winner's export
