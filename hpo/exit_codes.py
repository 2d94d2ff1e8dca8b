"""The exit codes of the command `hpo`."""

EXIT_DONE = 0
EXIT_BAD_INPUT = 2  # nothing was started
EXIT_NOTHING_VALID = 3  # no trial, or training, came to a valid result
EXIT_MACHINE = 4  # the machine, its disk, the database or the cluster failed
EXIT_LEFT_OUT = 5  # `hpo denoise --skip-bad` left images out
EXIT_RESUMABLE = 75  # nobody asked it to stop, and the same command continues it: EX_TEMPFAIL of sysexits.h
EXIT_INTERRUPTED = 130  # 128 + SIGINT
EXIT_TERMINATED = 143  # 128 + SIGTERM
