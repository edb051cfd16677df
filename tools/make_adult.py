"""Build the bundled Parquet file of UCI Adult from the raw data.

    python tools/make_adult.py adult.csv.gz     # one CSV with a header and a column `split`
    python tools/make_adult.py adult.zip        # the official archive with adult.data and adult.test

Both give the same file: raw values, "?" as missing, the official split in a column `split`.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

NAMES = (
    *("age", "workclass", "fnlwgt", "education", "education_num", "marital_status", "occupation", "relationship"),
    *("race", "sex", "capital_gain", "capital_loss", "hours_per_week", "native_country", "income"),
)
NUMBERS = ("age", "fnlwgt", "education_num", "capital_gain", "capital_loss", "hours_per_week")
ROWS = {"train": 32_561, "test": 16_281}
TARGET = Path(__file__).parents[1] / "src" / "limbeck" / "data" / "bundled" / "adult.parquet"


def read_csv(path: Path) -> pa.Table:
    """The rows of one CSV file with a header."""
    return pyarrow.csv.read_csv(path)


def read_official(path: Path) -> pa.Table:
    """The rows of the official archive; its test labels end in a full stop, its fields start with a blank."""
    parts = []
    with zipfile.ZipFile(path) as archive:
        for member, split in [("adult.data", "train"), ("adult.test", "test")]:
            lines = archive.read(member).decode("ascii").splitlines()
            rows = [[v.strip().rstrip(".") for v in line.split(",")] for line in lines if line.count(",") == 14]
            text = "\n".join(",".join([*row, split]) for row in rows)
            options = pyarrow.csv.ReadOptions(column_names=[*NAMES, "split"])
            parts.append(pyarrow.csv.read_csv(io.BytesIO(text.encode()), read_options=options))
    return pa.concat_tables(parts)


def clean(table: pa.Table) -> pa.Table:
    """Small integer types, dictionary-coded text, "?" as missing; rows and columns in their order."""
    columns = {}
    for name in [*NAMES, "split"]:
        column = table.column(name)
        if name in NUMBERS:
            columns[name] = column.cast(pa.int32())
        else:
            text = pc.utf8_trim_whitespace(column.cast(pa.string()))
            columns[name] = pc.if_else(pc.equal(text, "?"), None, text).combine_chunks().dictionary_encode()
    result = pa.table(columns)
    counted = {split: pc.sum(pc.equal(table.column("split"), split)).as_py() for split in ROWS}
    if counted != ROWS:
        raise SystemExit(f"found {counted} rows, expected {ROWS}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="adult.csv(.gz) or the official adult.zip")
    parser.add_argument("--target", type=Path, default=TARGET)
    arguments = parser.parse_args()
    read = read_official if arguments.source.suffix == ".zip" else read_csv
    arguments.target.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(
        clean(read(arguments.source)), arguments.target, compression="zstd", compression_level=19
    )
    print(f"{arguments.target}: {arguments.target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
