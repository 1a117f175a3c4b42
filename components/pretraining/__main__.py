"""``python -m components.pretraining``."""

import sys

from components.common.command import main_for
from components.pretraining.step import STEP

sys.exit(main_for(STEP))
