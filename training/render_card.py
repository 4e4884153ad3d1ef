"""Render the model card of a run from its JSON, or of a recipe that nobody has run yet.

Usage:
    python training/render_card.py runs/shapes_cpu
    python training/render_card.py runs/shapes_cpu --name mxmclr-shapes --output model_cards/mxmclr-shapes.md
    python training/render_card.py training/configs/text2shape_resnet18.yaml --name mxmclr-text2shape --output card.md

With an output elsewhere than in the run folder, the card shows the pictures that lie beside it, and no others.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

# Launched by path, this file's folder comes first, where `evaluate` would be ours instead of the package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import yaml

from training.arguments import parse_arguments
from training.card import Plan, render_card, without_missing_pictures
from training.card_plan import plan_of


def main(words: Sequence[str]) -> None:
    """Render as a command line says."""
    arguments = parse(words)
    output = arguments.output or arguments.source / "README.md"
    try:
        plan = read_plan(arguments.source)
        changes = {"model_name": arguments.name, "repo_id": arguments.repo_id, "license": arguments.license}
        plan |= {key: value for key, value in changes.items() if value}  # type: ignore[typeddict-item]
        card = render_card(without_missing_pictures(plan, output.parent))
    except (ValueError, OSError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    output.write_text(card, encoding="utf-8")
    sys.stdout.write(f"Rendered {output}\n")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="Run folder, its run.json, or a recipe.")
    parser.add_argument("--output", type=Path, help="File for the card; README.md of the run folder by default.")
    parser.add_argument("--name", help="Name of the model, in place of the run's.")
    parser.add_argument("--repo_id", metavar="ORG/NAME", help="Where on the Hub it is, in place of what the run says.")
    parser.add_argument("--license", help="Licence of the weights, as the Hub calls it.")
    arguments = parser.parse_args(words)
    if arguments.output is None and not arguments.source.is_dir():
        parser.error("`--output` is needed for the card of a file.")
    return arguments


def read_plan(source: Path) -> Plan:
    """The run of a folder or a JSON file, or the plan of a recipe."""
    if source.suffix in (".yaml", ".yml"):
        plan = plan_of(parse_arguments([str(source)], ""), f"accelerate launch training/train.py {source.as_posix()}")
        # Its own settings alone: the defaults of the others may have changed by the time that somebody runs it.
        return plan | {"arguments": yaml.safe_load(source.read_text(encoding="utf-8"))}
    return json.loads((source / "run.json" if source.is_dir() else source).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(sys.argv[1:])
