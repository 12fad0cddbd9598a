"""`python -m lgd_timm.cli`, as torchrun starts it."""

import sys

from .main import main

sys.exit(main())
