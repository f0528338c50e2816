"""The loss of the bundled models over their training, from the records in the package.

    python scripts/training_curves.py results/training

Writes losses.png: a panel for each stage that has a loss for each save. The rest of a record, such
as images per second and seconds, is in the JSON beside the weights.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from bdia_exp.console import say
from bdia_exp.report.figures import new_figure, save_figure, style
from bdia_exp.sources.checkpoints import BUNDLED

MODELS = ("fashion_mini", "fashion_guided", "cifar10_mini", "mini_sd", "mini_controlnet")


def stages_of(model: str) -> dict[str, dict[str, Any]]:
    """The stages of a model's training by name, each with images_seen, seconds and loss."""
    about = json.loads((BUNDLED / f"{model}.json").read_text())["training"]
    inner = {k: v for k, v in about.items() if isinstance(v, dict) and "loss" in v}
    return {f"{model}, {key}": value for key, value in inner.items()} or {model: about}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    stages = {name: one for model in MODELS for name, one in stages_of(model).items()}
    figure = new_figure(3.4 * len(stages), 3.2)
    panels = figure.subplots(1, len(stages), squeeze=False)[0]
    for panel, (name, one) in zip(panels, stages.items(), strict=True):
        images, losses = zip(*one["loss"], strict=True)
        panel.plot([count / 1000 for count in images], losses, **{**style(0), "marker": ""})
        rate = one["images_seen"] / one["seconds"]
        panel.set_title(f"{name}\n{one['seconds'] / 60:.0f} min, {rate:.0f} images/s", fontsize=9)
        panel.set(xlabel="thousand images", yscale="log")
        panel.grid(alpha=0.3, which="both")
    panels[0].set(ylabel="loss")
    out.mkdir(parents=True, exist_ok=True)
    save_figure(figure, out / "losses.png")
    say(f"written to {out / 'losses.png'}")


if __name__ == "__main__":
    main()
