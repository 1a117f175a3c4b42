"""``python -m components.registration``: the step, or ``promote | rollback | history | resolve`` as first argument."""

import sys

from components.common.command import main_for
from components.registration.commands import COMMANDS, commands_help, run_registry_command
from components.registration.step import STEP

if sys.argv[1:2] and sys.argv[1] in COMMANDS:
    sys.exit(run_registry_command())
if {"-h", "--help"} & set(sys.argv[1:]):
    print(commands_help())
sys.exit(main_for(STEP))
