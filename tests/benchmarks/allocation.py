"""Training steps a second where freed memory is kept, against giving it back: the same training, in turns.

    python tests/benchmarks/allocation.py --images DIR [--objective dino] [--rounds 10] [--turn 1]

The trainings are those of ``peer.py``. The last line is one JSON object: seconds of a step, the median ratio (given
back to kept) and the interval that holds 95 of 100 medians of resampled rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from tests.benchmarks.peer import OBJECTIVES, curate, in_turns, train_ours  # noqa: E402
from tests.benchmarks.ratios import ratio_of_rounds  # noqa: E402


def train(kind: str, objective: str, dataset: str, out: str, turn: int) -> None:
    """One of the two trainings."""
    from training.engine import loop

    if kind == "returned":
        loop.keep_freed_memory = lambda: False
    train_ours(objective, "fp32", dataset, out, turn)


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--train"]:
        train(*arguments[1:5], turn=int(arguments[5]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--objective", choices=OBJECTIVES, default="dino")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--turn", type=int, default=1, help="steps of a turn")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = str(curate(options.images, folder / "dataset"))
        kinds = ("kept", "returned")
        commands = {
            kind: [sys.executable, __file__, "--train", kind, options.objective, dataset, str(folder / kind)]
            + [str(options.turn)]
            for kind in kinds
        }
        environments = {kind: {"PYTHONPATH": str(REPOSITORY)} for kind in kinds}
        seconds = in_turns(commands, options.rounds, folder, environments)
    step = {kind: np.array(each) / options.turn for kind, each in seconds.items()}
    result = {
        "benchmark": "allocation",
        "objective": options.objective,
        "rounds": options.rounds,
        **{f"{kind}_seconds": round(float(np.median(each)), 3) for kind, each in step.items()},
        **ratio_of_rounds(step["returned"], step["kept"], digits=3),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
