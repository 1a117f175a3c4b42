"""``python -m components.adoption``."""

import sys

from components.adoption.step import STEP
from components.common.command import main_for

sys.exit(main_for(STEP))
