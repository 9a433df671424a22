"""The report is one self-contained page, escapes user input, and is rendered for any outcome."""

import base64
import hashlib
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from rootstock.evaluation.advice import Advice
from rootstock.evaluation.figures import percent, percents
from rootstock.evaluation.metrics import score
from rootstock.evaluation.mistakes import Mistake, Suspect
from rootstock.evaluation.report import SCRIPT, Report, data_uri, duration, render
from rootstock.training.calibration import probabilities
from tests.html_page import Page


def picture(kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "green").save(buffer, kind)
    return buffer.getvalue()


def report(
    *,
    winner: str = "finetuned",
    classes: tuple[str, ...] = ("ants", "bees", "wasps"),
    domains: tuple[str, ...] = ("field", "studio"),
    perfect: bool = False,
    mistakes: int = 2,
) -> Report:
    draw = np.random.default_rng(0)
    n, k = 60 * len(classes), len(classes)
    labels = np.arange(n) % k
    places = np.array(domains)[draw.integers(0, len(domains), n)]
    measured = {}
    for model in ("head", "finetuned"):
        logits = draw.normal(size=(n, k)) * (0 if perfect else 1)
        logits[np.arange(n), labels] += 3 if model == winner else 2
        measured[model] = score(labels, probabilities(logits), places, list(classes))
    return Report(
        name="insects, resnet34",
        winner=winner,
        why="It has the lower log loss on validation.",
        validation=measured,
        test=score(labels, probabilities(logits), places, list(classes)) if perfect else measured[winner],
        dataset={
            "splits": {"train": 5 * n, "val": n, "test": n},
            "domains": dict.fromkeys(domains, 7 * n),
            "by_class": {name: {"train": 300, "val": 60, "test": 60} for name in classes},
            "rejected": {"conflicting_label": 3, "truncated": 1},
            "sources": [{"name": "photos/insects", "images": 7 * n, "rejected": 4, "notes": ["read as folders"]}],
            "near_duplicates": {"groups": 5, "images": 12},
        },
        backbone={
            "name": "resnet34",
            "licence": "BSD-3-Clause",
            "parameters": 21_284_672,
            "transform": {"size": 96},
        },
        params={
            "seed": 0,
            "head": {"l2": [10.0, 0.1]},
            "finetune": {"stages": [{"unfreeze": "last_block", "lr": 0.0002}, {"unfreeze": "all", "lr": 1e-4}]},
            "ingest": {"allow_shrink": False, "max_side": None},
        },
        timings=[
            {"stage": "ingest", "seconds": 0.41, "images": 7 * n, "note": "4 rejected"},
            {"stage": "fine_tune", "seconds": 67.2},
        ],
        pictures={name: picture() for name in ("curves", "curves_dark", "confusion", "reliability", "recall")},
        mistakes=[
            Mistake(picture("JPEG"), "ants", "bees", 0.987, "field", f"photos/insects/ants/{i}.jpg")
            for i in range(mistakes)
        ],
    )


@pytest.mark.parametrize("winner", ["head", "finetuned"])
def test_the_page_opens_with_the_winner_and_its_test_accuracy(winner):
    given = report(winner=winner)
    page = Page(render(given))
    accuracy = given.test["accuracy"]
    verdict = "The head on frozen features wins" if winner == "head" else "The fine-tuned model wins"
    start = page.words().index(verdict)
    rest = page.words()[start:]
    assert rest.startswith(f"{verdict} {percent(accuracy['value'])} test accuracy")
    assert f"95 % interval {percents(accuracy)}" in rest
    assert "It has the lower log loss on validation." in rest
    assert "test images, not used for any choice." in rest
    for name, model in (("Head", "head"), ("Fine-tuned", "finetuned")):
        assert f"{name}, validation {percent(given.validation[model]['accuracy']['value'])}" in rest


def test_top5_is_shown_from_six_classes_on():
    assert "Top 5" not in Page(render(report())).words()
    assert "Top 5" in Page(render(report(classes=tuple("abcdef")))).words()


def test_what_makes_the_figures_rough_stands_below_the_accuracy_and_what_concerns_training_below_that():
    given = replace(report(), rough=["There are only 90 test images."], warnings=["The head has not converged."])
    words = Page(render(given)).words()
    places = [words.index(part) for part in ("test accuracy", "only 90 test", given.why, "not converged")]
    assert places == sorted(places)


def test_the_accuracy_has_a_note_on_untested_classes_only_if_there_are_any():
    given = report()
    untested = given.dataset["by_class"] | {"ants": {"train": 300, "val": 60, "test": 0}}
    words = Page(render(replace(given, dataset={**given.dataset, "by_class": untested}))).words()
    assert "Note: no test images of ants. The figures do not cover them." in words
    assert words.index("Note:") < words.index("Trained on")
    assert "Note:" not in Page(render(given)).words()


def test_the_page_is_self_contained():
    page = Page(render(report()))
    for tag, attributes in page.tags:
        assert tag not in {"iframe", "object", "form"}
        for name in ("src", "srcset", "href"):
            if name in attributes:
                assert re.match(r"data:|#", attributes[name]), attributes[name]
    assert "@import" not in render(report()) and "url(" not in render(report())


def test_the_policy_of_the_page_allows_its_own_script_and_nothing_else():
    page = Page(render(report()))
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert page.scripts == [SCRIPT]
    assert policy == (f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'")


def test_every_link_within_the_page_leads_somewhere():
    page = Page(render(report()))
    places = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = {attributes["href"][1:] for tag, attributes in page.tags if tag == "a"}
    assert links <= places and len(links) == 11


def test_text_given_by_users_is_escaped_everywhere():
    evil = "<script>alert('&')</script>\"onload=x"
    given = report(classes=("ants", evil, "wasps"), domains=("field", evil))
    given = replace(
        given,
        name=evil,
        mistakes=[Mistake(picture(), evil, evil, 0.5, evil, f"photos/{evil}.jpg")],
        why=evil,
        uses=evil,
        dataset={
            **given.dataset,
            "rejected": {evil: 1},
            "sources": [{"name": evil, "images": 1, "rejected": 1, "notes": [evil]}],
        },
        backbone={evil: evil},
        params={evil: {evil: [evil]}},
        timings=[{"stage": evil, "seconds": 1.0, "images": 1, "note": evil}],
    )
    html = render(given)
    page = Page(html)
    assert html.lower().count("<script") == 1 and page.scripts == [SCRIPT]
    assert all("onload" not in attributes for _, attributes in page.tags)
    assert page.words().count("<script>alert('&')</script>") > 10


def test_the_readers_system_chooses_between_dark_and_light_plots():
    page = Page(render(report()))
    dark = [attributes for tag, attributes in page.tags if tag == "source"]
    assert [one["media"] for one in dark] == ["screen and (prefers-color-scheme: dark)"]  # the one picture that has one
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 4 + 2 and all(one["alt"] for one in images)


def test_mistakes_show_actual_and_predicted_class_and_the_path():
    words = Page(render(report())).words()
    assert "ants → bees 98.7% field: photos/insects/ants/1.jpg" in words
    assert "2 are shown" in words


def test_a_report_without_mistakes_says_so():
    assert "None: every test image is classified correctly." in Page(render(report(perfect=True, mistakes=0))).words()
    words = Page(render(report(mistakes=0))).words()
    assert "misclassified; none are shown." in words


def test_a_report_without_plots_timings_and_rejected_files_is_complete():
    given = report()
    bare = {key: given.dataset[key] for key in ("splits", "domains", "by_class")} | {"rejected": {}}
    page = Page(render(replace(given, pictures={}, timings=[], mistakes=[], dataset=bare)))
    assert all(tag not in {"img", "picture"} for tag, _ in page.tags)
    assert "No stage was run on this machine." in page.words()


def test_domains_and_classes_are_listed_worst_first():
    given = report(classes=tuple(f"species {c}" for c in range(12)))
    html = render(given)
    for section, figure in (("domains", "accuracy"), ("classes", "recall")):
        part = html[html.index(f'<section id="{section}"') :]
        part = part[: part.index("</section>")]
        figures = given.test[section]
        listed = [name for name in re.findall(r"<th [^>]*>([^<]+)</th>", part) if name in figures]
        values = [figures[name][figure]["value"] for name in listed]
        assert len(listed) == len(figures) and values == sorted(values)


def test_a_report_of_one_domain_and_two_classes_is_rendered():
    words = Page(render(report(classes=("ants", "bees"), domains=("field",)))).words()
    assert "Domain The winner on the test images of each domain" in words and "studio" not in words


def test_all_of_many_classes_are_on_the_page_and_its_script_shows_the_worst():
    page = Page(render(report(classes=tuple(f"species {c}" for c in range(120)))))
    words = page.words()
    tables = [attributes["data-open"] for tag, attributes in page.tags if tag == "table" and "data-open" in attributes]
    assert tables == ["50", "50"]  # their figures, and their images
    assert all(f"species {c} " in words for c in range(120))


def test_a_class_without_test_images_is_named():
    given = report()
    given.test["classes"]["hornets"] = {"images": 0}
    assert "No test images, so no figures: hornets." in Page(render(given)).words()


def test_data_and_settings_are_shown():
    words = Page(render(report())).words()
    assert "conflicting label 3 truncated 1" in words
    assert "photos/insects read as folders 1,260 4" in words
    assert "12 images are near duplicates, in 5 groups" in words
    assert "finetune.stages[1].unfreeze all" in words
    assert "head.l2 10, 0.1" in words and "ingest.allow_shrink no ingest.max_side none" in words
    assert "licence BSD-3-Clause parameters 21,284,672 transform.size 96" in words


def test_times_are_shown_per_stage_and_in_total():
    words = Page(render(report())).words()
    assert "ingest 0.4 s 1,260 3,073 4 rejected" in words
    assert "fine_tune 1 min 07 s" in words and "1 min 08 s in total" in words


def suspect(split: str) -> Suspect:
    return Suspect(picture(), "ants", "bees", 0.9, split, "field", f"photos/{split}.png")


def test_suspected_labels_of_test_images_are_marked_and_not_to_be_corrected_alone():
    favours = "favours that model"
    several = replace(report(), suspects=[suspect("train"), suspect("test")], suspected=9, suspected_test=4)
    page = Page(render(several))
    assert "4 of them are test images." in page.words() and favours in page.words()
    assert "field, test image : photos/test.png" in page.words() and "field, train: photos/train.png" in page.words()
    alone = Page(render(replace(report(), suspects=[suspect("train")], suspected=1)))
    assert favours not in alone.words()


@pytest.mark.parametrize("link", ["labels", "classes"])
def test_it_is_said_whether_test_images_have_a_say_in_the_advice(link):
    words = Page(render(replace(report(), advice=[Advice("Do this", "It helps.", link)]))).words()
    assert ("Labels to check may be those of test images, too." in words) == (link == "labels")
    assert "the test images have no say in it" in words


def test_the_data_url_of_a_picture_names_its_format():
    assert data_uri(picture()).startswith("data:image/png;base64,iVBOR")
    assert data_uri(picture("JPEG")).startswith("data:image/jpeg;base64,")
    assert data_uri(picture("WEBP")).startswith("data:image/webp;base64,")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (247, "4 min 07 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_are_formatted_for_reading(seconds, words):
    assert duration(seconds) == words
