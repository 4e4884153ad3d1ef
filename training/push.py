"""Push a run folder to the Hub, as whoever is logged in there (`hf auth login`): a finished run, or what a run left.

Usage:
    python training/push.py runs/shapes_cpu --repo_id org/mxmclr-shapes
    python training/push.py runs/shapes_cpu --repo_id org/mxmclr-shapes --private --branch dev --tag v1

Weights, processor, code, card and figures go up in one commit; logs, TensorBoard and optimiser states never do. What
an interrupted push has uploaded already isn't sent again.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

# Launched by path, this file's folder comes first, where `evaluate` would be ours instead of the package.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from huggingface_hub.errors import HfHubHTTPError

from training.hub import Destination, model_folder, push_folder
from training.redaction import redact, redact_uncaught_errors


def main(words: Sequence[str]) -> None:
    """Push as a command line says."""
    arguments = parse(words)
    try:
        address = push_folder(arguments.run, destination_of(arguments), "Upload the run")
    except (HfHubHTTPError, ValueError, OSError) as error:
        raise SystemExit(redact(f"The push failed, and can be repeated: {error}")) from error
    sys.stdout.write(f"Pushed to {redact(address)}\n")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", type=Path, help="Run folder; of an unfinished run, the best checkpoint so far is pushed."
    )
    parser.add_argument("--repo_id", metavar="ORG/NAME", help="Where to; a run started with --push_to_hub knows it.")
    parser.add_argument("--private", action="store_true", help="Create that repository as a private one.")
    parser.add_argument("--branch", help="Branch, created where it isn't there (default: main).")
    parser.add_argument("--tag", help="Tag for the commit.")
    return parser.parse_args(words)


def destination_of(arguments: argparse.Namespace) -> Destination:
    """Where the command line says, and what it leaves out as the run was started with.

    Raises:
        ValueError: If neither names a repository.
    """
    run = model_folder(arguments.run) / "run.json"
    known = json.loads(run.read_text(encoding="utf-8"))["arguments"] if run.is_file() else {}
    repo_id = arguments.repo_id or known.get("push_to_hub")
    if not repo_id:
        raise ValueError(f"`--repo_id` is needed: the run {str(arguments.run)!r} was started without `--push_to_hub`.")
    if arguments.repo_id:  # somewhere else, perhaps, where its branch and tag would be out of place
        return Destination(repo_id, arguments.private, arguments.branch, arguments.tag)
    return Destination(
        repo_id,
        arguments.private or bool(known.get("private")),
        arguments.branch or known.get("hub_branch"),
        arguments.tag or known.get("hub_tag"),
    )


if __name__ == "__main__":
    redact_uncaught_errors()
    main(sys.argv[1:])
