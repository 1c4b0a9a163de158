"""Checks what the demo found: `python .ci/check_demo.py SUMMARY.json`."""

import json
import math
import sys
from pathlib import Path

METHODS = ("BP", "BP-Adam", "IL", "IL-MQ", "SeqIL", "SeqIL-MQ", "SeqIL-Adam", "iPC")
NUMBERS = (
    "best_accuracy_mean",
    "best_accuracy_std",
    "final_accuracy_mean",
    "final_accuracy_std",
    "seconds_per_epoch",
    "optimizer_state_bytes",
)
MIN_ACCURACY = 0.5  # chance is 0.1
MAX_GAP = 0.03  # of SeqIL-MQ's best accuracy behind BP's


def problems(rows: dict[str, dict]) -> list[str]:
    """What is wrong with the summary's rows, by method."""
    if sorted(rows) != sorted(METHODS):
        return [f"methods are {sorted(rows)}, expected {sorted(METHODS)}"]
    found = []
    for name, row in rows.items():
        for key in NUMBERS:
            value = row.get(key)
            if not isinstance(value, int | float) or not math.isfinite(value):
                found.append(f"{name}: {key} is {value}, expected a finite number")
            elif key.endswith("accuracy_mean") and not MIN_ACCURACY < value <= 1:
                found.append(f"{name}: {key} is {value}, expected > {MIN_ACCURACY}")
    if found:
        return found
    gap = rows["BP"]["best_accuracy_mean"] - rows["SeqIL-MQ"]["best_accuracy_mean"]
    if gap > MAX_GAP:
        found.append(f"SeqIL-MQ is {gap:.3f} behind BP, expected at most {MAX_GAP}")
    mq, adam = (
        rows[f"SeqIL-{name}"]["optimizer_state_bytes"] for name in ("MQ", "Adam")
    )
    if mq >= adam / 100:
        found.append(f"MQ's state has {mq} bytes, expected < 1 % of Adam's {adam}")
    return found


def main(path: Path) -> None:
    """Prints the table of what is checked, and exits with 1 if anything is wrong."""
    rows = {row["name"]: row for row in json.loads(path.read_text())["methods"]}
    print(f"{path}\n{'method':<12}" + "".join(f"{key:>22}" for key in NUMBERS))
    for name, row in rows.items():
        values = (row.get(key) for key in NUMBERS)
        cells = (f"{v:.4f}" if isinstance(v, float) else str(v) for v in values)
        print(f"{name:<12}" + "".join(f"{cell:>22}" for cell in cells))
    found = problems(rows)
    print("\n".join(f"FAILED {problem}" for problem in found) or "All checks passed.")
    sys.exit(bool(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
