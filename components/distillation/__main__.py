"""``python -m components.distillation``."""

import sys

from components.common.command import main_for
from components.distillation.step import STEP

sys.exit(main_for(STEP))
