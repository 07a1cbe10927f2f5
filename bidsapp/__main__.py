"""``python -m bidsapp`` is ``transfermri``."""

import sys

from bidsapp.cli import main

sys.exit(main())
