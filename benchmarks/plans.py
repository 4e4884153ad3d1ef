"""Plans of trials: YAML files that say what is compared, on which seeds, and what is plotted against what."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from benchmarks.trial import Trial

FOLDER = Path(__file__).parent / "plans"
NEEDED_KEYS = ("title", "seeds", "scored_on", "baseline", "entries")
PLAN_KEYS = (*NEEDED_KEYS, "x", "shared", "shared_on")
TRIAL_FIELDS = tuple(each.name for each in fields(Trial))
NEEDED_FIELDS = tuple(
    each.name for each in fields(Trial) if each.default is MISSING and each.default_factory is MISSING
)


@dataclass(frozen=True)
class Entry:
    """One line of a table: a trial, run with each seed."""

    name: str
    budget: str  # entries of one budget are compared with each other
    trial: Trial
    data: tuple[str, ...] | None = None  # the data sets that it is run on; None for all
    trial_on: Mapping[str, Trial] = field(default_factory=dict)  # of data sets that it is run on in another way


@dataclass(frozen=True)
class Plan:
    """What is compared with what."""

    name: str
    title: str
    seeds: list[int]
    on_test: bool  # else scored on the validation split alone
    baseline: str  # the entry, of each budget, that the others are compared with
    x: str | None  # a field of `Trial` to plot against; else bars are drawn
    entries: list[Entry]

    def of(self, data: str) -> list[Entry]:
        """The entries that are run on a data set, each with its trial there."""
        entries = [entry for entry in self.entries if entry.data is None or data in entry.data]
        return [replace(entry, trial=entry.trial_on.get(data, entry.trial)) for entry in entries]


def load_plan(name: str) -> Plan:
    """The plan of a name in `benchmarks/plans`, or of a file.

    Raises:
        ValueError: For an unknown plan, key or field, one that lacks, and for two entries of one name and budget.
    """
    path = Path(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = sorted(each.stem for each in FOLDER.glob("*.yaml"))
        raise ValueError(f"`plan` must be a YAML file or one of {known}, got {name!r}.")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    check_keys(path.name, content, PLAN_KEYS, NEEDED_KEYS)
    shared, shared_on = content.get("shared") or {}, content.get("shared_on") or {}
    entries = [read_entry(path.name, each, shared, shared_on) for each in content["entries"]]
    plan = Plan(
        path.stem,
        content["title"],
        content["seeds"],
        content["scored_on"] == "test",
        content["baseline"],
        content.get("x"),
        entries,
    )
    check_plan(path.name, plan, content["scored_on"])
    return plan


def check_plan(where: str, plan: Plan, scored_on: str) -> None:
    """Raise unless the parts of a plan fit each other."""
    if scored_on not in ("validation", "test"):
        raise ValueError(f"`scored_on` of {where} must be `validation` or `test`, got {scored_on!r}.")
    if twice := sorted(
        {f"{one.name} ({one.budget})" for one, other in combinations(plan.entries, 2) if clash(one, other)}
    ):
        raise ValueError(f"`entries` of {where} must differ in name or budget, {twice} are there twice.")
    if plan.baseline not in (entry.name for entry in plan.entries):
        raise ValueError(f"`baseline` of {where} must be the name of an entry, got {plan.baseline!r}.")
    if plan.x is not None and plan.x not in TRIAL_FIELDS:
        raise ValueError(f"`x` of {where} must be one of {list(TRIAL_FIELDS)}, got {plan.x!r}.")


def clash(one: Entry, other: Entry) -> bool:
    """Whether two entries would be one line of a table of some data set."""
    may_meet = one.data is None or other.data is None or bool(set(one.data) & set(other.data))
    return (one.name, one.budget) == (other.name, other.budget) and may_meet


def read_entry(
    where: str, own: Mapping[str, Any], shared: Mapping[str, Any], shared_on: Mapping[str, Mapping[str, Any]]
) -> Entry:
    """An entry of a plan, with the fields that all entries share, and those that they share on some data sets."""
    trials = {data: read_trial(where, {**shared, **more, **own}) for data, more in shared_on.items()}
    content, data = {**shared, **own}, own.get("data")
    trial = read_trial(where, content)
    return Entry(content["name"], content.get("budget", ""), trial, None if data is None else tuple(data), trials)


def read_trial(where: str, content: Mapping[str, Any]) -> Trial:
    """The trial of an entry."""
    named = f"{content.get('name', 'An entry')!r} in {where}"
    check_keys(named, content, ("name", "budget", "data", *TRIAL_FIELDS), ("name", *NEEDED_FIELDS))
    return Trial(**{key: value for key, value in content.items() if key in TRIAL_FIELDS})


def check_keys(where: str, content: Mapping[str, Any], known: Sequence[str], needed: Sequence[str]) -> None:
    """Raise unless all keys are known, and those that are needed are there."""
    if unknown := sorted(set(content) - set(known)):
        raise ValueError(f"{where} has the unknown keys {unknown}; it may have {list(known)}.")
    if missing := [key for key in needed if key not in content]:
        raise ValueError(f"{where} lacks {missing}; give a value for each.")
