"""One table of all samplers, and one sheet of edits, from the studies in a folder.

    python scripts/studies.py results/studies

`make studies` runs the studies themselves. The table joins FID and label accuracy (`reproduce
samplers`), orders (`convergence`) and round trips (`exactness`) by the samplers' configurations.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from PIL import Image

from bdia_exp.cli.files import CONFIGS
from bdia_exp.errors import UserError
from bdia_exp.jobs import experiments
from bdia_exp.jobs.identity import plainly
from bdia_exp.report import figures
from bdia_exp.store.files import write_text
from bdia_exp.store.image_sets import ImageSet
from bdia_exp.store.images import contact_sheet

EDITS = {
    "DDIM": "ddim",
    "EDICT p=0.93": "edict",
    "BDIA-DDIM γ=1": "bdia-1",
    "BDIA-DDIM γ=0.96": "bdia-0.96",
    "BDIA-DDIM γ=0.92": "bdia-0.92",
}


def load(path: Path) -> Any:
    if not path.exists():
        raise UserError(f"{path} is missing: `make studies` runs all of them")
    return json.loads(path.read_text(encoding="utf-8"))


def key_of(config: dict, levels: str) -> str:
    """The key that joins the studies, of any age: the sampler and its kind of levels, as text."""
    return json.dumps([plainly(config), levels], sort_keys=True)


def sampler_of(record: dict) -> str:
    """The key of a record, from its configurations of the sampler and the grid."""
    on_edm = record["config"]["grid"]["_target_"].endswith(".karras")
    return key_of(record["config"]["sampler"], "edm" if on_edm else "arc")


def samplers_table(root: Path) -> str:
    """Every sampler: FID and label accuracy at each NFE, order, error of a round trip."""
    drawn = load(root / "samplers" / "tables.json")
    experiment: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / "experiment/samplers.yaml"))
    keys = {
        (cell.table, cell.row): sampler_of(found[0])
        for cell in experiments.cells_of(experiment, root / "samplers")
        if (found := cell.records())
    }
    orders = {
        key_of(row["config"], row["levels"]): row["order"]
        for problem in load(root / "convergence" / "convergence.json")["problems"]
        if problem["name"] == "gaussian"
        for row in problem["rows"]
    }
    exact = load(root / "exactness" / "exactness.json")
    steps = exact["config"]["steps"][-1]
    trips: dict[str, list[str]] = {}
    for problem in exact["problems"]:
        for row in problem["rows"]:
            named = (problem["name"], row["start"], row["state"])
            if named == ("fashion_mini", "image", "float64"):
                trips.setdefault(sampler_of(row), []).append(f"{row['rms'][-1]:.0e}")
    images = sorted({cell["images"] for table in drawn["tables"] for cell in table["cells"]})
    lines = [
        "# All samplers on the bundled model",
        "",
        f"{' or '.join(map(str, images))} images a cell, the same seeds in every cell; **FID** in "
        "the bundled classifier's features, not comparable with Inception FID; in brackets the "
        "share of images with the label asked for. **Order** as `convergence` measured it on a "
        "Gaussian, where it could. **Round trip**: RMS error of image → noise → image in float64, "
        f"{steps} steps, relative to the image's RMS; of DDIM with both of its inversions.",
    ]
    for table in drawn["tables"]:
        cells = {(cell["row"], cell["column"]): cell for cell in table["cells"]}
        lines += [
            "",
            f"## {table['title']}",
            "",
            "| sampler | "
            + " | ".join(f"NFE {column}" for column in table["columns"])
            + " | order | round trip |",
            "|---|" + "--:|" * (len(table["columns"]) + 2),
        ]
        for row in table["rows"]:
            found = [cells.get((row, column)) for column in table["columns"]]
            texts = [
                f"{cell['fid']:.3f} ({100 * cell['label_accuracy']:.0f} %)" if cell else "–"
                for cell in found
            ]
            key = keys.get((table["name"], row), "")
            order = orders.get(key)
            texts += ["–" if order is None else f"{order:.1f}", ", ".join(trips.get(key, ["–"]))]
            lines.append(f"| {row} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def edit_sheet(root: Path) -> None:
    """Draws the input and below it each method's edits; writes a table of their errors."""
    rows: dict[str, Path | Image.Image] = {}
    text = []
    for name, folder in EDITS.items():
        record = load(root / "edits" / folder / "record.json")
        images = ImageSet(root / "edits" / folder).read(range(record["images"]))
        if not rows:
            source = ImageSet(root / "edits" / "input").read(range(record["images"]))
            rows["input"] = contact_sheet(source, len(source))
        rows[name] = contact_sheet(images, len(images))
        text.append(
            f"| {name} | {record['pixel_error']['rms']:.3f} | {record['edit_distance']['rms']:.1f} "
            f"| {record['noise']['rms']:.3f} ({record['noise']['expected_rms']:.3f}) "
            f"| {100 * record['classified_as_to']:.0f} % | {record['nfe'] + record['nfe_back']} |"
        )
    figures.side_by_side(rows, root / "edits" / "sheet.png")
    head = (
        "# Edits into another class\n\n![Edits](sheet.png)\n\n"
        "RMS of pixels, of 255: the reconstruction from the input, and the edit from it. Noise: RMS"
        " of the inverted images, and what images noised at random have. Seen: the share of edits "
        "that the bundled classifier calls by the new class.\n\n"
        "| method | reconstruction | edit | noise | seen | evaluations |\n|---|--:|--:|--:|--:|--:|"
    )
    write_text(root / "edits" / "edits.md", "\n".join([head, *text]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="the folder that `make studies` fills")
    root = parser.parse_args().root
    try:
        write_text(root / "samplers.md", samplers_table(root))
        edit_sheet(root)
    except UserError as error:
        parser.exit(1, f"Error: {error}\n")
    print(f"written to {root}: samplers.md, edits/edits.md, edits/sheet.png")


if __name__ == "__main__":
    main()
