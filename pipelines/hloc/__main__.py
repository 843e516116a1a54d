"""``python -m pipelines.hloc``."""

import sys

from pipelines.hloc.command import main

if __name__ == "__main__":
    sys.exit(main())
