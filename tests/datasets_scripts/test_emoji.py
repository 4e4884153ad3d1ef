import contextlib
import json
import random
import re
import shutil

import numpy as np
import pytest

from datasets_scripts import RowError, load_multifold, loading
from datasets_scripts.build import build
from datasets_scripts.emoji import Emoji, EmojiConfig, list_emoji, main
from datasets_scripts.emoji_packages import ICON_SETS, WORDS, js_to_json, npm_install, npm_name
from datasets_scripts.emoji_words import Words, captions_of

GRIN, HEART, FRANCE, CAT, CAT_FACE, CRICKET = "😀", "❤️", "🇫🇷", "🐈", "🐱", "🦗"
NAMES = {
    GRIN: "grinning face",
    HEART: "red heart",
    FRANCE: "flag: France",
    CAT: "cat",
    CAT_FACE: "cat face",
    CRICKET: "cricket",
}
COLOURS = dict(zip(ICON_SETS, ("red", "green", "blue", "blue", "black", "gray", "lime", "aqua", "teal"), strict=True))


def box(colour):
    return {"body": f'<path d="M0 0h8v8h-8z" fill="{colour}"/>'}


def icons(name, *names, **aliases):
    found = {icon: box(COLOURS[name]) for icon in names}
    made = {alias: {"parent": parent} for alias, parent in aliases.items()}
    return {"prefix": name, "icons": found, "aliases": made, "width": 8, "height": 8}


LISTED = ("grinning-face", "red-heart", "flag-france", "cat-face")
POINTS = {"1f600": "grinning-face", "2764-fe0f": "heart", "1F1EB-1F1F7": "flag-france", "1f431": "cat-face"}


def icon_files():
    files = {}
    for name in ("noto", "twemoji", "fluent-emoji-flat", "openmoji"):
        files[name] = icons(name, *LISTED, heart="love", love="red-heart"), POINTS
    files["fluent-emoji"] = icons("fluent-emoji", "grinning-face", "red-heart", heart="red-heart"), {}
    files["emojione"] = (
        icons("emojione", "grinning-face", "flag-for-france", "cat", "cricket-game", cricket="cricket-game"),
        {},
    )
    files["emojione-v1"] = icons("emojione-v1", "heavy-black-heart", "grinning-face"), {}
    files["noto-v1"] = icons("noto-v1", "grin"), {}
    files["fxemoji"] = icons("fxemoji", "grinningface", "franceflag", "heavyblackheart"), {}
    return files


def annotations(key, texts):
    return {key: {"annotations": {emoji: {"tts": [text]} | more for emoji, (text, more) in texts.items()}}}


def word_files():
    plain = {HEART.replace("\ufe0f", ""): (NAMES[HEART], {"default": ["heart", "love", "red"]})}
    plain |= {emoji: (NAMES[emoji], {}) for emoji in (CAT, CAT_FACE, CRICKET)}
    plain[GRIN] = (NAMES[GRIN], {"default": ["face", "grin", "smile"]})
    files = {
        ("unicode-emoji-json", "data-by-emoji.json"): {
            emoji: {"group": "Flags" if emoji == FRANCE else "Smileys & Emotion"} for emoji in NAMES
        },
        ("emojilib", "dist/emoji-en-US.json"): {
            GRIN: ["grinning_face", "happy", ":D", "big_smile", "3"],
            CAT: ["cat", "animal"],
            CRICKET: ["cricket", "chirp"],
        },
        ("emojibase-data", "en/data.json"): [
            {"hexcode": "1F600", "tags": ["smile", "face", "grin"]},
            {"hexcode": "2764-FE0F", "tags": ["love"]},
        ],
        ("emoji-datasource", "emoji.json"): [{"unified": "2764-FE0F", "name": "HEAVY BLACK HEART"}],
    }
    for locale in ("en", "en-GB", "en-AU", "en-CA", "en-001"):
        own = plain if locale == "en" else {GRIN: ("smiling widely", {})} if locale == "en-AU" else {}
        files["cldr-annotations-full", f"annotations/{locale}/annotations.json"] = annotations("annotations", own)
        derived = {FRANCE: (NAMES[FRANCE], {"default": ["flag"]})} if locale == "en" else {}
        if locale != "en-GB":
            path = f"annotationsDerived/{locale}/annotations.json"
            files["cldr-annotations-derived-full", path] = annotations("annotationsDerived", derived)
    for name in ("emojibase", "iamcal", "joypixels", "github"):
        codes = {
            "1F600": ["grinning", "grin"],
            "2764": "heart",
            "1F408": "cat2",
            "1F431": "cat",
            "1F1EB-1F1F7": "flag_fr",
        }
        files["emojibase-data", f"en/shortcodes/{name}.json"] = codes
    return files


GEMOJI = """/** @type {Array<Gemoji>} */
export const gemoji = [
  {
    emoji: '😀',
    names: ['grinning', 'big_grin'],
    tags: ["it's", 'smile'],
    category: 'Smileys & Emotion'
  }
]

export const nameToEmoji = {'grinning': '😀'}
"""


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), encoding="utf-8")


@pytest.fixture
def packages(tmp_path):
    """Tiny packages in the form of the real ones."""
    modules = tmp_path / "npm" / "node_modules"
    for name, package in (ICON_SETS | WORDS).items():
        write(modules / npm_name(name) / "package.json", {"version": package.version})
    for name, (content, points) in icon_files().items():
        write(modules / npm_name(name) / "icons.json", content)
        write(modules / npm_name(name) / "chars.json", points)
    for (name, file), content in word_files().items():
        write(modules / name / file, content)
    write(modules / "gemoji" / "index.js", GEMOJI)
    return modules.parent


LOOSE = {"image_size": 8, "min_views": 1, "min_captions": 1}


@pytest.fixture
def load(packages, tmp_path):
    def load_rows(**settings):
        builder = Emoji(data_dir=str(packages), cache_dir=str(tmp_path / "cache"), **(LOOSE | settings))
        return {row["instance_id"]: row for rows in builder.as_streaming_dataset().values() for row in rows}

    return load_rows


def test_every_set_is_a_view_and_every_vocabulary_a_caption(load):
    row = load(share_alike=True)["1f600"]
    assert row["image_sources"] == [name for name in ICON_SETS if name != "fluent-emoji"]
    assert [np.asarray(image)[4, 4].tolist() for image in row["images"]][:3] == [[255, 0, 0], [0, 128, 0], [0, 0, 255]]
    assert dict(zip(row["caption_sources"], row["captions"], strict=True)) == {
        "cldr:tts": "grinning face",
        "cldr:keywords": "face, grin, smile",
        "emojilib:keywords": "happy, big smile",
        "gemoji:names+tags": "grinning, big grin, it's, smile",
        "emojibase:shortcodes": "grinning, grin",
        "cldr:en-AU:tts": "smiling widely",
        "noto-v1:icon-name": "grin",
    }
    assert row["category"] == "smileys-emotion"


def test_a_drawing_that_two_sets_share_comes_once(load):
    assert "fluent-emoji" not in load(share_alike=True)["1f600"]["image_sources"]  # as blue as fluent-emoji-flat


def test_icons_are_found_by_code_points_through_aliases_and_by_another_sets_names(packages):
    found = {emoji.instance_id: emoji for emoji in list_emoji(EmojiConfig(data_dir=str(packages), **LOOSE))}
    names = {icon.icon_set: icon.name for icon in found["2764"].icons}
    assert names == {
        "noto": "red-heart", "twemoji": "red-heart", "fluent-emoji-flat": "red-heart", "fluent-emoji": "red-heart",
        "fxemoji": "heavyblackheart",
    }  # fmt: skip


def test_icons_are_found_by_a_name_that_only_one_emoji_has(packages):
    found = {emoji.instance_id: emoji for emoji in list_emoji(EmojiConfig(data_dir=str(packages), **LOOSE))}
    by_emoji = {name: {icon.icon_set: icon.name for icon in emoji.icons} for name, emoji in found.items()}
    assert by_emoji["1f1eb-1f1f7"]["emojione"] == "flag-for-france"
    assert by_emoji["1f1eb-1f1f7"]["fxemoji"] == "franceflag"
    assert by_emoji["1f997"] == {"emojione": "cricket-game"}
    assert "1f408" not in by_emoji  # `cat` is the cat's name and the cat face's shortcode
    assert "emojione" not in by_emoji["1f431"]


def test_share_alike_sets_are_left_out_and_need_not_be_installed(packages, load):
    for name in ("openmoji", "emojione-v1"):
        shutil.rmtree(packages / "node_modules" / npm_name(name))
    assert not {"openmoji", "emojione-v1"} & set(load()["1f600"]["image_sources"])
    with pytest.raises(
        RowError, match=r"The npm package `@iconify-json/openmoji` isn't in .*run `npm install .*openmoji@"
    ):
        load(share_alike=True)


def test_few_views_or_captions_leave_an_emoji_out(load):
    assert set(load(share_alike=True)) == {"1f600", "2764", "1f1eb-1f1f7", "1f431", "1f997"}
    assert set(load(share_alike=True, min_views=5)) == {"1f600", "2764", "1f1eb-1f1f7"}
    assert set(load(min_captions=6)) == {"1f600"}
    assert max(len(row["captions"]) for row in load(max_captions=2).values()) == 2


def words(**changes):
    empty = Words("x", "78", "", "big cat", "", [], [], [], [], {}, {"en-001": ""}, "", [])
    return empty._replace(**changes)


def test_captions_of_the_same_words_come_once_and_those_within_the_name_only_to_fill_up():
    made = words(unicode_name="cat big", keywords=["cat"], emojilib=["cat", "pet", "<3", "9"], tags=["pet"])
    assert [caption.text for caption in captions_of(made, {}, 1, 8)] == ["big cat", "pet"]
    assert [caption.text for caption in captions_of(made, {}, 3, 8)] == ["big cat", "pet", "cat"]


def test_icon_names_are_captions_where_they_say_something_new():
    found = captions_of(words(), {"emojione-v1": "lap-tiger", "noto": "other"}, 1, 8)
    assert [(caption.source, caption.text) for caption in found][1:] == [("emojione-v1:icon-name", "lap tiger")]


def test_the_split_is_by_the_hash_of_the_id(packages, tmp_path):
    splits = Emoji(data_dir=str(packages), cache_dir=str(tmp_path), **LOOSE).as_streaming_dataset()
    assert "1f600" in [row["instance_id"] for row in splits["test"]]


def test_the_data_card_has_the_licence_of_every_set(packages, tmp_path, monkeypatch):
    monkeypatch.setitem(loading.BUILDERS, "emoji", Emoji)
    for share_alike in (False, True):
        out = build("emoji", tmp_path / f"{share_alike}", data_dir=str(packages), share_alike=share_alike, **LOOSE)
        card = (out / "README.md").read_text(encoding="utf-8")
        rows = re.findall(r"^\| `([^`]+)` \| [\d.]+ \| (\S+) \|", card, re.MULTILINE)
        expected = {npm_name(name): made.license for name, made in (ICON_SETS | WORDS).items()}
        assert dict(rows) == {
            name: license for name, license in expected.items() if share_alike or "-SA-" not in license
        }
        assert ("cc-by-sa-4.0" in card, "must do so under that licence" in card) == (share_alike, share_alike)


def test_other_versions_of_the_packages_are_another_data_set(packages, tmp_path):
    first = Emoji(data_dir=str(packages), cache_dir=str(tmp_path)).cache_dir
    write(packages / "node_modules" / "gemoji" / "package.json", {"version": "9.0.0"})
    assert Emoji(data_dir=str(packages), cache_dir=str(tmp_path)).cache_dir != first


@pytest.mark.parametrize("name", [*ICON_SETS, *WORDS])
def test_a_missing_package_is_named_with_the_command_that_installs_it(packages, name, load):
    shutil.rmtree(packages / "node_modules" / npm_name(name))
    with pytest.raises(RowError, match=re.escape(f"The npm package `{npm_name(name)}` isn't in")) as caught:
        load(share_alike=True)
    assert npm_install() in str(caught.value)


BROKEN = [
    "",
    "[]",
    "{}",
    "3",
    "\0",
    '{"icons": 3}',
    '{"icons": {"grinning-face": 3}}',
    '{"1f600": 3, "zz": []}',
    "= [\n]",
]


@pytest.mark.parametrize("seed", range(40))
def test_broken_packages_end_in_our_own_error_or_in_rows(packages, load, seed):
    rng = random.Random(seed)
    files = sorted(path for path in (packages / "node_modules").rglob("*") if path.is_file())
    path = rng.choice(files)
    text = path.read_text(encoding="utf-8")
    cut = rng.randrange(len(text))
    broken = rng.choice([text[:cut], text[:cut] + rng.choice("[]{},:'0\"") + text[cut + 1 :], *BROKEN])
    path.write_text(broken, encoding="utf-8")
    with contextlib.suppress(RowError):
        load(share_alike=True)


def test_an_icon_that_cannot_be_drawn_is_named(packages, load):
    path = packages / "node_modules" / "@iconify-json" / "noto" / "icons.json"
    path.write_text(path.read_text().replace("<path", "<image"))
    with pytest.raises(RowError, match=r"@iconify-json/noto, icon '.*': an SVG may hold the elements .*, got `image`"):
        load()


def test_javascript_that_is_no_plain_data_is_refused():
    assert json.loads(js_to_json("[{a: ['b', \"c\"]}]", "here")) == [{"a": ["b", "c"]}]
    with pytest.raises(RowError, match="expected lists, objects and strings, got"):
        js_to_json("[require('fs')]", "here")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data_dir": None}, "`data_dir` must be the folder in which you ran `npm install"),
        ({"image_size": 0}, "`image_size` must be a whole number within 1 and 1024, got 0"),
        ({"min_views": "4"}, "`min_views` must be a whole number"),
        ({"share_alike": "yes"}, "`share_alike` must be True or False, got 'yes'"),
    ],
)
def test_settings_that_cannot_be_are_named(packages, load, settings, message):
    with pytest.raises(ValueError, match=message):
        Emoji(**({"data_dir": str(packages)} | settings))


def test_the_command_that_installs_is_written(capsys):
    main(["--share_alike"])
    assert capsys.readouterr().out == npm_install() + "\n"
    main([])
    assert "-SA-" not in capsys.readouterr().out
    assert "openmoji" not in npm_install(share_alike=False)


def test_it_loads_by_name(packages, tmp_path, monkeypatch):
    monkeypatch.setitem(loading.BUILDERS, "emoji", Emoji)
    splits = load_multifold("emoji", data_dir=str(packages), cache_dir=tmp_path / "cache", **LOOSE)
    assert sum(map(len, splits.values())) == 5
