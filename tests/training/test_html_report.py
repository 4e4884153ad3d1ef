import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
import torch

from tests.references.evaluations import embeddings_of, evaluation_of, plain_rows, rows_of
from training.compare import compare
from training.evaluation import Evaluation, score_embeddings
from training.html_report import comparison_page, render, report_page
from training.initial_embeddings import save_initial_embeddings
from training.protocol import load_protocol
from training.report_sections import sample_of
from training.zero_shot import ClassEmbeddings

SCRIPT = "<script>alert(1)</script>"
BREAKOUT = "'\"></bdi></style><img src=x onerror=alert(2)>"
HOSTILE = {
    SCRIPT: [SCRIPT, f"a {BREAKOUT}", "{{ 7 * 7 }}{% raw %}", "nul \x00 and \x1b[31m and \u202e backwards"],
    BREAKOUT: [SCRIPT, "]]>--><!-- ${x}", "&lt;script&gt;", ""],
    "javascript:alert(3)": ["x" * 20_000],
}
# What a page of ours may hold; anything else came from the data.
TAGS = re.compile(
    "html|head|meta|title|style|body|header|main|footer|nav|ul|ol|li|a|h[123]|p|div|small|code|bdi|article|span|figure|"
    "figcaption|img|table|thead|tbody|tr|th|td"
)
ATTRIBUTES = {
    "lang",
    "charset",
    "name",
    "content",
    "http-equiv",
    "aria-label",
    "href",
    "id",
    "class",
    "scope",
    "src",
    "alt",
}
VOID = {"meta", "img"}


class Page(HTMLParser):
    """A page taken apart: its text, its headings, and what it would fetch or run."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.text = self.style = self.policy = ""
        self.ids, self.links, self.sources = [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert TAGS.fullmatch(tag)
        found = dict(attrs)
        assert found.keys() <= ATTRIBUTES
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if "href" in found else []
        self.sources += [found["src"]] if "src" in found else []
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.text += data

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")


@pytest.fixture(scope="module")
def hostile() -> Evaluation:
    return evaluation_of(rows_of(HOSTILE, category=BREAKOUT), checkpoint=f"runs/{SCRIPT}")


@pytest.fixture(scope="module")
def hostile_page(hostile) -> str:
    return report_page(hostile)


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, str]:
    """A page of each kind."""
    rows = plain_rows()
    run = tmp_path_factory.mktemp("run")
    one, other = (evaluation_of(rows, noise=1.2, seed=seed, checkpoint=f"{run}") for seed in (0, 1))
    save_initial_embeddings(sample_of(other), run)
    (run / "run.json").write_text(json.dumps(RUN))
    return {"report": report_page(one), "comparison": comparison_page(compare(one, other), one, other)}


RUN = {
    "model_name": "a-run",
    "objective": "mfh",
    "towers": {"text": "bert, from scratch", "vision": "resnet, from scratch"},
    "parameters": 1234567,
    "dataset": {"name": "things", "sizes": {"train": 100, "test": 12}},
    "command": "accelerate launch training/train.py",
    "git_revision": "abc",
    "hardware": "CPU",
    "versions": {"torch": "2"},
    "steps": 10,
    "seconds": 3,
}


def test_hostile_text_stays_text(hostile_page):
    page = Page(hostile_page)
    for text in (SCRIPT, BREAKOUT, "{{ 7 * 7 }}{% raw %}", "&lt;script&gt;", "]]>--><!-- ${x}"):
        assert text in page.text
    assert "<script" not in hostile_page
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f]", hostile_page)


def test_hostile_text_stays_text_in_a_comparison(hostile):
    other = evaluation_of(rows_of(HOSTILE, category=BREAKOUT), seed=4, checkpoint="runs/other")
    page = Page(comparison_page(compare(hostile, other), hostile, other))
    assert SCRIPT in page.text


def test_pages_fetch_nothing_and_run_nothing(pages, hostile_page):
    for text in (*pages.values(), hostile_page):
        page = Page(text)
        assert all(
            source.startswith(("data:image/jpeg;base64,", "data:image/svg+xml;base64,")) for source in page.sources
        )
        assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
        assert len(page.ids) == len(set(page.ids)) == len(page.links)
        digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
        assert page.policy == (
            f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
        )
        assert "url(" not in page.style
        assert "@import" not in page.style


def test_a_page_says_all_that_was_promised(pages):
    page = Page(pages["report"])
    for text in (
        "a-run: retrieval on test", "RR@1", "NDCG@5", "95 % interval", "By category", "first hit at rank", "should find",
        "Same text, several instances", "Same words, several instances", "hash of the gallery", "1,234,567", "resnet",
        "modality gap", "multifold/instance", "thing number 3",
    ):  # fmt: skip
        assert text in page.text
    assert page.text.count("How to read:") == 4
    assert len([source for source in page.sources if "svg" in source]) == 4
    assert "✓" in page.text


def test_a_comparison_says_what_was_promised(pages):
    page = Page(pages["comparison"])
    for text in (
        "second minus first",
        "Instances that fare better",
        "Instances that fare worse",
        "MRR +",
        "1,234,567",
    ):
        assert text in page.text
    assert any("jpeg" in source for source in page.sources)


def test_the_map_has_a_panel_from_before_training_where_there_is_one(pages, hostile_page):
    note = "There is no panel from before training"
    assert note in hostile_page
    assert note not in pages["report"]


def test_size_does_not_grow_with_the_data():
    small, large = (
        len(report_page(evaluation_of(rows_of({f"id {n}": ["word " * 200] * 3 for n in range(count)}, views=1))))
        for count in (20, 120)
    )
    assert large < 1.3 * small < 1_300_000


@pytest.mark.parametrize("protocol", ["multifold/max_sim", "text2shape/tricolo"])
def test_every_protocol_has_its_page(protocol):
    page = Page(report_page(evaluation_of(plain_rows(), protocol=protocol)))
    assert f"{protocol}, hash" in page.text


def test_classes_have_their_page():
    rows = plain_rows(6)
    classes = ClassEmbeddings(["shape", SCRIPT], torch.eye(16)[:2])
    evaluation = score_embeddings(
        "run", "things", "test", rows, embeddings_of(rows, 0.5), load_protocol("zero-shot"), classes
    )
    page = Page(report_page(evaluation))
    assert "instance → class" in page.text
    assert SCRIPT in page.text
    assert "Ambiguous captions" not in page.text


def test_a_value_that_a_template_lacks_is_an_error():
    with pytest.raises(Exception, match="'comparison' is undefined"):
        render("comparison.html", title="a", contents={})
