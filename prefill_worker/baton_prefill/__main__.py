"""python -m baton_prefill --settings FILE.json"""

import sys

from baton_api.worker import Role
from baton_worker.process import run

from .leg import PrefillLeg

sys.exit(run(Role.PREFILL, PrefillLeg, sys.argv[1:]))
