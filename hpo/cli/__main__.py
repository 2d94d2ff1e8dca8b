"""`python -m hpo.cli` is the command `hpo`."""

import sys

from hpo.cli.commands import main

sys.exit(main())
