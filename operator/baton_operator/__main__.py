"""python -m baton_operator --settings FILE.json"""

import sys

from .process import run

sys.exit(run(sys.argv[1:]))
