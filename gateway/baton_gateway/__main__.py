"""python -m baton_gateway --settings FILE.json"""

import sys

import baton_wire.early_exit  # noqa: F401  before anything slow

from .process import run

sys.exit(run(sys.argv[1:]))
