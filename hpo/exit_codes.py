"""The exit codes of the command `hpo`."""

EXIT_DONE = 0
EXIT_BAD_INPUT = 2
EXIT_NOTHING_VALID = 3
EXIT_MACHINE = 4
EXIT_LEFT_OUT = 5
EXIT_RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h
EXIT_INTERRUPTED = 130  # 128 + SIGINT
EXIT_TERMINATED = 143  # 128 + SIGTERM

MEANINGS = {
    EXIT_DONE: "success",
    EXIT_BAD_INPUT: "bad input; nothing was started",
    EXIT_NOTHING_VALID: "no trial and no training gave a valid result",
    EXIT_MACHINE: "environment failure: machine, disk, database or cluster",
    EXIT_LEFT_OUT: "`hpo denoise --skip-bad` left images out",
    EXIT_RESUMABLE: "stopped by a failure of Ray's head, the database or the storage; the same command continues",
    EXIT_INTERRUPTED: "interrupted; the same command continues",
    EXIT_TERMINATED: "terminated, for example by `hpo stop`; the same command continues",
}
