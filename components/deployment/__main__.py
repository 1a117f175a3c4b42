"""``python -m components.deployment``."""

import sys

from components.common.command import main_for
from components.deployment.step import STEP

sys.exit(main_for(STEP))
