"""``python -m components.curation``: the step, or ``delete`` as first argument."""

import sys

from components.common.command import main_for
from components.curation.commands import COMMANDS, HELP, run_dataset_command
from components.curation.step import STEP

if sys.argv[1:2] and sys.argv[1] in COMMANDS:
    sys.exit(run_dataset_command())
if {"-h", "--help"} & set(sys.argv[1:]):
    print(HELP)
sys.exit(main_for(STEP))
