"""The names of the files in a search's folder, and of the facts in its study's metadata. They never change."""

from __future__ import annotations

STATUS_FILE = "status.json"
STUDY_FILE, LOCK_FILE = "study.db", "lock"
EXPORT = "export"  # the folder of the winner's export
FRONT = "front"  # the folder with an export of each member of a front, and metadata: their figures
FRONT_FILE = "front.json"  # in that folder: the same for readers

FINALISTS, FINAL = "finalists", "final"  # metadata; the final training also has a folder named FINAL
COLLAPSES = "final_collapses"  # metadata: each collapse of a final training, and what was done then
LOST = "lost"  # metadata: numbers of trials whose best checkpoint was damaged or missing when the search ended
IMAGES = "images"  # metadata: the digest of the images that the trials see
REPLICATES = "replicates"  # metadata: measurements of the replicates; their folder, too
TEST_READS = "test_reads"  # metadata: each export that a driver measured on the test images
