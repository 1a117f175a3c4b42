"""``python -m components.curation``."""

import sys

from components.common.command import main_for
from components.curation.step import STEP

sys.exit(main_for(STEP))
