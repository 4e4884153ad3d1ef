from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from training.arguments import GROUPS, parse_arguments

RECIPES = sorted((Path(__file__).resolve().parents[2] / "training" / "configs").glob("*.yaml"))
TOWERS = ['--text_config={"model_type": "bert"}', '--vision_config={"model_type": "vit"}']
MINIMAL = ["--dataset=shapes", *TOWERS]


def write(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    return str(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_ours_parses_and_says_its_command_first(recipe):
    arguments = parse_arguments([str(recipe)], "")
    assert Path(arguments.optimization.output_dir).name == recipe.stem
    assert recipe.read_text().startswith(f"# accelerate launch training/train.py training/configs/{recipe.name}")


def test_flags_override_the_recipe_and_types_are_those_of_the_fields(tmp_path):
    recipe = write(
        tmp_path,
        "dataset: shapes\nlearning_rate: 1e-3\nviews_per_instance: 2\nhorizontal_flip: true\n"
        "vision_model: a\ntext_config: {model_type: bert, hidden_size: 8}\nimage_size:\n",
    )
    arguments = parse_arguments([recipe, "--seed", "7", "--views_per_instance", "all"], "")
    assert arguments.optimization.learning_rate == 1e-3
    assert arguments.optimization.seed == 7
    assert arguments.data.views_per_instance == "all"
    assert arguments.data.horizontal_flip is True
    assert arguments.model.text_config == {"model_type": "bert", "hidden_size": 8}
    assert arguments.model.image_size is None
    assert arguments.optimization.output_dir == "runs/recipe"


@pytest.mark.parametrize("flags", [("--dataset", "mine"), ("--dataset=mine",)])
def test_a_data_set_of_the_command_line_replaces_all_that_the_recipe_says_of_its_own(tmp_path, flags):
    towers = "text_model: a\nvision_model: b\n"
    details = "dataset_config: small\ndata_dir: raw\nimage_columns: [front]\n"
    recipe = write(tmp_path, f"dataset: shapes\nseed: 3\n{details}{towers}")
    arguments = parse_arguments([recipe, *flags], "")
    assert arguments.data.source == {"dataset": "mine", "config": None}
    assert arguments.optimization.seed == 3
    assert parse_arguments([recipe, *flags, "--dataset_config", "new"], "").data.dataset_config == "new"
    assert parse_arguments([recipe], "").data.dataset_config == "small"


def test_resolved_arguments_are_a_recipe_that_says_the_same(tmp_path):
    arguments = parse_arguments([*MINIMAL, '--objective_settings={"soft_weight": 0.3}'], "")
    again = parse_arguments([write(tmp_path, yaml.safe_dump(arguments.as_dict()))], "")
    assert again.as_dict() == arguments.as_dict()


def test_columns_of_a_foreign_data_set_reach_the_loader(tmp_path):
    recipe = write(
        tmp_path, "dataset: org/products\ninstance_column: sku\nimage_columns: [front, side]\nclip_model: a\n"
    )
    data = parse_arguments([recipe, "--caption_columns", "title", "text", "--num_proc", "2"], "").data
    assert data.source == {
        "dataset": "org/products",
        "config": None,
        "instance_column": "sku",
        "image_columns": ["front", "side"],
        "caption_columns": ["title", "text"],
        "num_proc": 2,
    }


def test_data_sets_of_a_mixture_are_names_or_mappings(tmp_path):
    recipe = write(
        tmp_path,
        "dataset: shapes\ndataset_config: small\ndataset_weights: [2, 1, 0.5]\nnum_proc: 2\nclip_model: a\n"
        "more_datasets:\n  - path/to/folder\n  - {dataset: org/products, instance_column: sku, image_columns: [a, b]}\n",
    )
    arguments = parse_arguments([recipe], "")
    assert arguments.data.more_sources == [
        {"dataset": "path/to/folder", "config": None, "num_proc": 2},
        {"dataset": "org/products", "config": None, "instance_column": "sku", "image_columns": ["a", "b"]}
        | {"num_proc": 2},
    ]
    assert arguments.data.dataset_weights == [2.0, 1.0, 0.5]
    again = parse_arguments([write(tmp_path, yaml.safe_dump(arguments.as_dict()))], "")
    assert again.as_dict() == arguments.as_dict()
    assert parse_arguments([recipe, "--dataset", "mine"], "").data.more_datasets == []


def test_training_states_are_kept_as_often_as_the_run_evaluates_unless_told_otherwise():
    assert parse_arguments([*MINIMAL, "--eval_every=7"], "").optimization.checkpoint_every == 7
    assert parse_arguments([*MINIMAL, "--checkpoint_every=0"], "").optimization.checkpoint_every == 0


def test_every_flag_has_help():
    assert all(field.metadata["help"] for group in GROUPS for field in fields(group))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", r"recipe.yaml' has an unknown key `learning_rat`; did you mean `learning_rate`\?"),
        ("qqq: 1", "unknown key `qqq`; see `--help`"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_broken_recipes_name_the_culprit(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments([write(tmp_path, text)], "")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset=shapes"], "A model starts from one of"),
        ([*MINIMAL, "--clip_model=a"], "A model starts from one of"),
        (["--dataset=shapes", TOWERS[0]], "The vision tower needs one of"),
        ([*MINIMAL, "--text_model=a"], "The text tower needs one of"),
        ([*MINIMAL, "--views_per_instance=0"], "`views_per_instance` must be a positive number or `all`, got '0'"),
        ([*MINIMAL, "--crop_scale=1.5"], "`crop_scale` must lie in"),
        ([*MINIMAL, "--instances_per_step=1"], "`instances_per_step` must be at least 2"),
        ([*MINIMAL, "--freeze_text_tower=some"], "`freeze_text_tower` must be"),
        ([*MINIMAL, "--mixed_precision=half"], "`mixed_precision` must be one of"),
        ([*MINIMAL, "--eval_every=0"], "`eval_every` must be at least 1"),
        ([*MINIMAL, "--text_buckets=0"], "`text_buckets` must be at least 1"),
        ([*MINIMAL, "--prefetch_factor=0"], "`prefetch_factor` must be at least 1"),
        ([*MINIMAL, "--checkpoint_every=-1"], "`checkpoint_every` must not be negative, got -1"),
        ([*MINIMAL, "--keep_checkpoints=0"], "`keep_checkpoints` must be at least 1"),
        ([*MINIMAL, "--num_processes=0"], "`num_processes` must be at least 1, got 0"),
        ([*MINIMAL, "--micro_batch_tokens=0"], "`micro_batch_tokens` must be at least 1, got 0"),
        ([*MINIMAL, "--objective_settings=3"], "`objective_settings` must be a mapping"),
        ([*MINIMAL, "--objective_settings={"], "`objective_settings` must be a JSON object"),
        ([*MINIMAL, "--view_per_instance=2"], "did you mean `views_per_instance`"),
        (["missing.yaml"], "'missing.yaml' does not exist"),
        ([*MINIMAL, "--text_only_instances=-1"], "`text_only_instances` must not be negative, got -1"),
        ([*MINIMAL, "--text_only_instances=9", "--streaming=true"], "`text_only_instances` needs stored rows, got 9"),
        ([*MINIMAL, "--memory_batches=-1"], "`memory_batches` must not be negative, got -1"),
        ([*MINIMAL, "--memory_from=2"], r"`memory_from` must lie in \[0, 1\], got 2"),
        ([*MINIMAL, "--shuffle_buffer=0"], "`shuffle_buffer` must be at least 1, got 0"),
        ([*MINIMAL, "--more_datasets", "emoji", "shapes"], "`more_datasets` must name each data set once"),
        ([*MINIMAL, "--more_datasets", "{"], "`more_datasets` must be a JSON object, got '{'"),
        ([*MINIMAL, "--more_datasets", '{"dataset": "a", "split": "b"}'], "must have `dataset` and some of .*, got"),
        ([*MINIMAL, "--dataset_weights", "1", "2"], "`dataset_weights` has 2 entries for 1 data sets"),
        (
            [*MINIMAL, "--more_datasets", "emoji", "--dataset_weights", "1", "-2"],
            r"`dataset_weights` must be positive, got \[1.0, -2.0\]",
        ),
        ([*MINIMAL, "--more_datasets", "emoji", "--streaming"], "with `streaming` need `dataset_weights`"),
        (
            [*MINIMAL, "--push_to_hub=a/b/c"],
            "`push_to_hub` must be a Hub id such as 'org/name', got 'a/b/c'",
        ),
    ],
)
def test_bad_values_name_the_flag(flags, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(flags, "")


def test_values_of_the_wrong_type_stop_with_usage(capsys):
    with pytest.raises(SystemExit):
        parse_arguments([*MINIMAL, "--seed=first"], "")
    assert "--seed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--use_dora"], r"\['use_dora'\] need a `lora_rank`"),
        (["--lora_rank=-1"], "`lora_rank` must not be negative, got -1"),
        (["--lora_rank=4", "--lora_alpha=0"], "`lora_alpha` must be positive"),
        (["--lora_rank=4", "--lora_dropout=1"], r"`lora_dropout` must lie in \[0, 1\)"),
        (["--lora_rank=4", "--lora_towers=image"], "`lora_towers` must be one of .*'image'"),
        (["--lora_rank=4", "--freeze_text_tower=all"], "`freeze_text_tower` and `lora_rank` exclude each other"),
    ],
)
def test_an_adapter_that_makes_no_sense_is_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(["--dataset=shapes", "--model=runs/shapes_cpu", *flags], "")


def test_an_adapter_needs_a_checkpoint_to_refer_to():
    with pytest.raises(ValueError, match="`lora_rank` needs `model`"):
        parse_arguments([*MINIMAL, "--lora_rank=4"], "")
    lora = parse_arguments([*MINIMAL, "--lora_rank=0", "--lora_targets", "query", "value"], "").lora
    assert lora.lora_targets == ["query", "value"]
