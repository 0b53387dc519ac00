"""`python -m finetune`, as distributed launchers start it."""

import sys

from finetune.cli import main

sys.exit(main())
