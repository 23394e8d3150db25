"""python -m baton_prefill --settings FILE.json"""

import sys

import baton_wire.early_exit  # noqa: F401  before anything slow
from baton_api.worker import Role
from baton_worker.process import run

from .leg import PrefillLeg

sys.exit(run(Role.PREFILL, PrefillLeg, sys.argv[1:]))
