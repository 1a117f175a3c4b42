"""``python -m components.evaluation``."""

import sys

from components.common.command import main_for
from components.evaluation.step import STEP

sys.exit(main_for(STEP))
