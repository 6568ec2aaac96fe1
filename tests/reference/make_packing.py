"""Bins of TRL's best-fit decreasing packing: tests/fixtures/packing/cases.json.

Every example is a list that repeats its own number, so that the packed rows tell which examples share a bin.
"""

import json
import random
from pathlib import Path

import pyarrow as pa
from trl.data_utils import _pack_bfd

FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "packing"


def bins_of(lengths, capacity):
    table = pa.table({"input_ids": pa.array([[i] * n for i, n in enumerate(lengths)])})
    packed = _pack_bfd(table, capacity).column("input_ids").to_pylist()
    bin_of = {i: index for index, row in enumerate(packed) for i in row}
    return [bin_of[i] for i in range(len(lengths))]


def draw(generator, n, capacity, spread):
    if spread == "uniform":
        return [generator.randint(1, capacity) for _ in range(n)]
    if spread == "short":
        return [generator.randint(1, max(1, capacity // 8)) for _ in range(n)]
    return [min(capacity, max(1, int(generator.lognormvariate(3, 1)))) for _ in range(n)]


def main():
    generator = random.Random(20)
    cases = []
    for capacity in (1, 2, 7, 64, 100, 256, 1000):
        for spread, n in (("uniform", 60), ("short", 150), ("lognormal", 150)):
            lengths = draw(generator, n if capacity > 1 else 3, capacity, spread)
            cases.append({"capacity": capacity, "lengths": lengths, "bins": bins_of(lengths, capacity)})
    FOLDER.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    (FOLDER / "cases.json").write_text("[\n" + lines + "\n]\n")


if __name__ == "__main__":
    main()
