"""Saves checkpoints without end; the test kills it. argv: run folder (made when absent)."""

import json
import random
import sys
from pathlib import Path

from vla_rl.runtime.run_folder import RunFolder

path = Path(sys.argv[1])
run = RunFolder.open(path) if path.exists() else RunFolder.create(path.parent, path.name, "run: {}\n")
newest = run.latest_checkpoint()
step = json.loads((newest / "state.json").read_text())["step"] if newest else 0
print("ready", step, flush=True)
again = False
while True:
    # Now and then the same step is saved again, as at the end of a run.
    again = not again and random.random() < 0.3
    step += 0 if again and step else 10
    run.log(step, success=0.5)

    def write(folder: Path, step: int = step) -> None:
        (folder / "algorithm").mkdir()
        for part in range(3):
            (folder / "algorithm" / f"{part}.bin").write_bytes(bytes([step % 251]) * 60_000)
        (folder / "state.json").write_text(json.dumps({"step": step}))

    run.save_checkpoint(step, write, keep=random.choice([1, 2]))
    print(step, flush=True)
