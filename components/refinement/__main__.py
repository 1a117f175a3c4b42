"""``python -m components.refinement``."""

import sys

from components.common.command import main_for
from components.refinement.step import STEP

sys.exit(main_for(STEP))
