"""Plans of trials: that those of the repository load, and what others are told."""

import pytest
import yaml

from benchmarks.plans import FOLDER, load_plan
from benchmarks.trial import Trial
from modeling_mxmclr.objectives_mxmclr import OBJECTIVES

PLAN = {
    "title": "Two objectives",
    "seeds": [0, 1],
    "scored_on": "test",
    "baseline": "clip",
    "shared": {"views": 2, "captions": 1, "steps": 10},
    "entries": [
        {"name": "clip", "objective": "clip", "instances": 16, "budget": "images"},
        {"name": "mfh", "objective": "mfh", "instances": 8, "budget": "images", "views": 4, "data": ["shapes"]},
    ],
}


@pytest.fixture
def write(tmp_path):
    """Writes a plan with some keys changed, and gives its path."""

    def plan_file(**changes) -> str:
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(PLAN | changes))
        return str(path)

    return plan_file


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_plan_of_the_repository_loads_and_can_be_run(path):
    plan = load_plan(path.stem)
    assert plan.name == path.stem
    assert plan.seeds == sorted(set(plan.seeds))
    assert plan.baseline in {entry.name for entry in plan.entries}
    assert plan.x is None or plan.x in Trial.__dataclass_fields__
    assert {entry.trial.objective for entry in plan.entries} <= set(OBJECTIVES)


def test_a_plan_is_read_with_what_its_entries_share(write):
    plan = load_plan(write())
    assert (plan.name, plan.title, plan.seeds, plan.on_test, plan.baseline, plan.x) == (
        "small", "Two objectives", [0, 1], True, "clip", None,
    )  # fmt: skip
    clip, mfh = plan.entries
    assert clip.trial == Trial("clip", instances=16, views=2, captions=1, steps=10)
    assert mfh.trial == Trial("mfh", instances=8, views=4, captions=1, steps=10)
    assert (mfh.budget, mfh.data) == ("images", ("shapes",))


def test_an_entry_of_some_data_sets_is_run_on_them_alone(write):
    plan = load_plan(write())
    assert [entry.name for entry in plan.of("shapes")] == ["clip", "mfh"]
    assert [entry.name for entry in plan.of("emoji")] == ["clip"]


def test_a_plan_of_validation_is_not_scored_on_test(write):
    assert not load_plan(write(scored_on="validation")).on_test


def test_one_name_may_stand_in_two_budgets_or_data_sets(write):
    clip = PLAN["entries"][0]
    other_budget, one, another = clip | {"budget": ""}, clip | {"data": ["a"]}, clip | {"data": ["b"]}
    assert len(load_plan(write(entries=[clip, other_budget])).entries) == 2
    assert len(load_plan(write(entries=[one, another])).entries) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 3}, r"small\.yaml has the unknown keys \['seed'\]; it may have \['title', 'seeds'"),
        (
            {"shared": {"colour": 1}},
            r"'clip' in small\.yaml has the unknown keys \['colour'\]; it may have \['name', 'budget'",
        ),
        (
            {"entries": [PLAN["entries"][0]] * 2},
            r"must differ in name or budget, \['clip \(images\)'\] are there twice",
        ),
        ({"entries": [PLAN["entries"][0], PLAN["entries"][0] | {"data": ["emoji"]}]}, r"are there twice"),
        ({"entries": [{"name": "clip", "objective": "clip"}]}, r"'clip' in small\.yaml lacks \['instances'"),
        ({"baseline": "clap"}, r"`baseline` of small\.yaml must be the name of an entry, got 'clap'"),
        ({"x": "images"}, r"`x` of small\.yaml must be one of .*'captions'.*, got 'images'"),
        ({"scored_on": "train"}, r"`scored_on` of small\.yaml must be `validation` or `test`, got 'train'"),
    ],
)
def test_a_wrong_plan_is_told_what_is_wrong(write, changes, message):
    with pytest.raises(ValueError, match=message):
        load_plan(write(**changes))


@pytest.mark.parametrize("name", ["gird", "gird.yaml"])
def test_an_unknown_plan_is_told_the_known_ones(name):
    with pytest.raises(ValueError, match=rf"`plan` must be a YAML file or one of \[.*\], got '{name}'"):
        load_plan(name)


def test_entries_may_share_a_budget(write):
    entries = [{name: value for name, value in entry.items() if name != "budget"} for entry in PLAN["entries"]]
    plan = load_plan(write(entries=entries, shared=PLAN["shared"] | {"budget": "views"}))
    assert {entry.budget for entry in plan.entries} == {"views"}


def test_a_data_set_may_have_fields_of_its_own_below_those_of_an_entry(write):
    path = write(shared_on={"shapes": {"steps": 20, "views": 3}})
    plan = load_plan(path)
    assert [(entry.trial.steps, entry.trial.views) for entry in plan.of("shapes")] == [(20, 3), (20, 4)]
    assert [(entry.trial.steps, entry.trial.views) for entry in plan.of("emoji")] == [(10, 2)]
