"""python -m baton_decode --settings FILE.json"""

import sys

import baton_wire.early_exit  # noqa: F401  before anything slow
from baton_api.worker import Role
from baton_worker.process import run

from .leg import DecodeLeg

sys.exit(run(Role.DECODE, DecodeLeg, sys.argv[1:]))
