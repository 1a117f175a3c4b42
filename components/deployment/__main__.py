"""``python -m components.deployment``: the step, or ``watch`` as first argument."""

import sys

from components.common.command import main_for
from components.deployment.commands import HELP, run_watch
from components.deployment.step import STEP

if sys.argv[1:2] == ["watch"]:
    sys.exit(run_watch(sys.argv[2:]))
if {"-h", "--help"} & set(sys.argv[1:]):
    print(HELP)
sys.exit(main_for(STEP))
