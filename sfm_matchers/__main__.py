"""`python -m sfm_matchers`: the command `sfm-matchers`."""

import sys

from pipelines.cli import main

sys.exit(main())
