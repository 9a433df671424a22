"""The parameters: their defaults, the errors for what is not accepted, the schema of the form, and former names."""

import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from rootstock.config import params
from rootstock.config.architectures import NAMES, TORCHVISION
from rootstock.config.params import Params, Section
from rootstock.config.params_file import load, section_in, validate
from rootstock.config.section import warned, without_warnings
from tests.params_yaml import SHIPPED, error_of

SECTIONS = "seed, ingest, backbone, extract, head, finetune, evaluate, compare, retrain, export, cache, track"
STAGE = "unfreeze: all, epochs: 1, lr: 0.1"


def test_the_shipped_file_has_every_key_in_the_order_of_the_model():
    def shows(shown: dict, section: type[Section]) -> None:
        assert list(shown) == list(section.model_fields)
        for name, field in section.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                shows(shown[name], field.annotation)

    shows(YAML(typ="safe").load(SHIPPED), Params)
    of_the_sample = {"backbone": True, "ingest": {"sources"}}
    assert load(SHIPPED).model_dump(exclude=of_the_sample) == Params().model_dump(exclude=of_the_sample)


def test_an_omitted_key_has_its_default(file):
    file.write_text("# nothing\n")
    assert load(file) == Params()
    file.write_text("head: {max_iterations: 7}")
    assert load(file).head == Params().head.model_copy(update={"max_iterations": 7})


@pytest.mark.parametrize(
    ("text", "line"),
    [
        # unknown keys, with the nearest that is known
        ("seeed: 1", f"unknown key seeed; expected one of {SECTIONS}. Did you mean seed?"),
        ("1: 2", f"unknown key 1; expected one of {SECTIONS}."),
        ("ingest: {split: {vall: 0.6}}", "unknown key ingest.split.vall; expected one of val, test. Did you mean val?"),
        (
            "extract: {batch-size: 3}",
            "unknown key extract.batch-size; expected one of layer, pooling, dtype, engine, precision, decode, views, "
            "view_augment, batch_size, runner, workers, cluster, store. Did you mean batch_size?",
        ),
        (
            f"finetune: {{stages: [{{{STAGE}}}, {{{STAGE}, epoch: 3}}]}}",
            "unknown key finetune.stages[1].epoch; expected one of unfreeze, epochs, lr. Did you mean epochs?",
        ),
        # misspelt choices
        (
            "backbone: {name: resnet34, variant: shortcut_d}",
            "backbone.variant is 'shortcut_d'; expected average_pooling, shortcut_a, shortcut_b, shortcut_c. "
            "Did you mean shortcut_c?",
        ),
        ("extract: {dtype: float61}", "extract.dtype is 'float61'; expected float32, float16. Did you mean float16?"),
        (
            "finetune: {augment: flip}",
            "finetune.augment is 'flip'; expected none, crop, crop_flip, randaugment. Did you mean crop_flip?",
        ),
        (
            "backbone: {name: ResNet-34}",
            "backbone.name is 'ResNet-34'; expected one of 83 names (see docs/backbones.md) or timm/<name>. "
            "Did you mean resnet34 or resnet50 or resnet18?",
        ),
        (
            "backbone: {name: }",
            "backbone.name is empty; expected text (in quotes, if it looks like a number or a date).",
        ),
        # wrong types
        ("seed: x", "seed is 'x'; expected a whole number."),
        ("seed: true", "seed is true; expected a whole number."),
        ("head: {l2: 3}", "head.l2 is 3; expected a list."),
        ("head: {l2: [1, two]}", "head.l2[1] is 'two'; expected a number."),
        ("head:", "head is empty; expected the keys kind, class_weight, l2, max_iterations."),
        ("head: []", "head is a list; expected the keys kind, class_weight, l2, max_iterations."),
        (
            "ingest: {sources: [photos]}",
            "ingest.sources[0] is 'photos'; expected the keys path, domain, name, layout, classes_at, splits, "
            "group, value_range.",
        ),
        *(
            (
                text,
                f"{key} is {pattern!r}{reason}; expected a regular expression with one group named group, e.g. "
                r"(?P<group>patient_\d+)",
            )
            for pattern, reason in (
                ("patient_.*", ""),
                (r"(?P<patient>\d+)", ""),
                ("(?P<group>a)|(?P<group>b)", ""),
                (r"(cam1|cam2)/(?P<group>\d+)", " (it has a group without a name; write (?:...) instead of (...))"),
                ("(?P<group>[a", " (missing ]: [a)"),
                ("(?=x)(?P<group>x)", " (invalid perl operator: (?=)"),
            )
            for key, text in (
                ("ingest.sources[0].group", f"ingest: {{sources: [{{path: a, domain: b, group: '{pattern}'}}]}}"),
                ("retrain.group", f"retrain: {{group: '{pattern}'}}"),
            )
        ),
        ("ingest: {allow_shrink: yes}", "ingest.allow_shrink is 'yes'; expected true or false."),
        (
            "ingest: {sources: [{path: a, domain: 2024}]}",
            "ingest.sources[0].domain is 2024; expected text (in quotes, if it looks like a number or a date).",
        ),
        ("[1, 2]", f"the file is a list; expected the keys {SECTIONS}."),
        # impossible values
        ("backbone: {image_size: 8}", "backbone.image_size is 8; expected at least 16."),
        ("backbone: {image_size: 4000}", "backbone.image_size is 4000; expected at most 1024."),
        ("backbone: {weights: ''}", "backbone.weights is ''; expected text."),
        ("ingest: {split: {val: 1}}", "ingest.split.val is 1; expected less than 1."),
        ("ingest: {split: {val: 0.6, test: 0.5}}", "ingest.split: val + test is 1.1; expected less than 1."),
        ("ingest: {sources: []}", "ingest.sources is empty; expected at least 1 entry."),
        (
            "ingest: {sources: [{path: a, domain: d, value_range: [1]}]}",
            "ingest.sources[0].value_range has 1 entry; expected at least 2 entries.",
        ),
        (
            "ingest: {sources: [{path: a, domain: d, value_range: [0, .inf]}]}",
            "ingest.sources[0].value_range[1] is inf; expected a finite number.",
        ),
        (
            "ingest: {sources: [{path: a, domain: d, splits: [train]}]}",
            "ingest.sources[0].splits is a list; expected a mapping.",
        ),
        ("head: {l2: [.inf]}", "head.l2[0] is inf; expected a finite number."),
        ("finetune: {weight_decay: .nan}", "finetune.weight_decay is nan; expected a finite number."),
        ("finetune: {batch_size: 1}", "finetune.batch_size is 1; expected at least 2."),
        (
            "ingest: {sources: [{path: a, domain: b}, {path: a, domain: c}]}",
            "ingest: two sources are called 'a'; give one of them a `name`.",
        ),
        # missing keys
        (
            "ingest: {sources: [{path: a}]}",
            "ingest.sources[0].domain is missing; expected: Where the images come from, e.g. handwritten.",
        ),
        (
            "finetune: {stages: [{unfreeze: all, epochs: 1, lr: fast}]}",
            "finetune.stages[0].lr is 'fast'; expected a number above 0 and below 1, or auto.",
        ),
        (
            "finetune: {stages: [{unfreeze: [], epochs: 1, lr: auto}]}",
            "finetune.stages[0].unfreeze is []; expected head, last_block, last_2_blocks, last_3_blocks, last_half, "
            "all, first_block, lora, auto, a layer name, or a list of blocks.",
        ),
        (
            "finetune: {stages: [{unfreeze: all, epochs: 1}]}",
            "finetune.stages[0].lr is missing; expected: Peak learning rate of the one-cycle schedule, or auto: "
            "found by a range test of 60 steps before the stage.",
        ),
    ],
)
def test_an_error_names_the_key_the_allowed_values_and_the_nearest_spelling(file, text, line):
    assert error_of(file, text) == f"params.yaml: {line}"


@pytest.mark.parametrize(("written", "meant"), [("last_blok", "last_block"), ("al", "all"), ("heads", "head")])
def test_a_misspelt_depth_is_refused_before_a_network_is_built(file, written, meant):
    assert error_of(file, f"finetune: {{stages: [{{unfreeze: {written}, epochs: 1, lr: 0.1}}]}}").endswith(
        f"finetune.stages[0].unfreeze is '{written}'; expected head, last_block, last_2_blocks, last_3_blocks, "
        f"last_half, all, first_block, lora, auto, or a layer name. Did you mean {meant}?"
    )


def test_all_errors_of_a_file_are_reported_at_once(file):
    assert error_of(file, "finetune: {stages: [{unfreeze: all, epochs: 0, lr: 2}]}\nsed: 1").splitlines() == [
        "params.yaml: finetune.stages[0].epochs is 0; expected a whole number of at least 1, or auto.",
        "params.yaml: finetune.stages[0].lr is 2; expected a number above 0 and below 1, or auto.",
        f"params.yaml: unknown key sed; expected one of {SECTIONS}. Did you mean seed?",
    ]


def test_an_error_shows_nothing_of_a_source_but_the_key_at_fault(file):
    assert "hunter2" not in error_of(file, "ingest: {sources: {path: 's3://me:hunter2@store/x', domain: a}}")
    assert "hunter2" not in error_of(file, "ingest: {sources: [{path: 's3://me:hunter2@store/x', domain: a}]}")


def test_every_field_of_the_form_has_a_description():
    schema = Params.model_json_schema()
    sections = {"Params": schema["properties"]} | {name: part["properties"] for name, part in schema["$defs"].items()}
    for section, fields in sections.items():
        for name, field in fields.items():
            assert "$ref" in field or field["description"], f"{section}.{name}"
    assert sections["Backbone"]["name"]["anyOf"][0]["enum"] == list(NAMES)
    assert sections["Extract"]["dtype"]["enum"] == ["float32", "float16"]
    assert sections["Finetune"]["augment"]["enum"] == ["none", "crop", "crop_flip", "randaugment"]
    assert sections["Finetune"]["stages"]["items"] == {"$ref": "#/$defs/Stage"}
    assert sections["Finetune"]["batch_size"]["minimum"] == 2


def test_every_torchvision_classifier_of_the_installed_version_is_a_backbone():
    import torchvision

    assert set(torchvision.models.list_models(module=torchvision.models)) <= set(TORCHVISION)
    assert len(TORCHVISION) == len(set(TORCHVISION)) == 80


def test_importing_the_parameters_imports_neither_torch_nor_another_large_package():
    heavy = "{'torch', 'torchvision', 'timm', 'pandas', 'numpy', 'pyarrow', 'prefect', 'dvc'}"
    code = f"import sys, rootstock.config.params; print({heavy} & set(sys.modules) or 'none')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "none"


def test_the_documentation_explains_every_key():
    page = (Path(__file__).parents[3] / "docs" / "params.md").read_text()

    def explained(model: type[Section], prefix: str) -> None:
        for name, field in model.model_fields.items():
            inner = section_in(field.annotation)
            if inner is None:
                assert f"| `{prefix}{name}` |" in page
                assert str(field.description) in page
            else:
                explained(inner, f"{prefix}{name}{'[]' if 'tuple' in str(field.annotation) else ''}.")

    explained(Params, "")


def test_a_tracker_that_is_not_installed_is_refused_with_the_command_that_installs_it(file, monkeypatch):
    for found in (None, ModuleSpec("wandb", None)):  # the latter for ./wandb, the folder of its offline runs
        monkeypatch.setattr(params, "find_spec", lambda name, found=found: found)
        command = "pip install -c constraints.txt -e '.[wandb]'"
        assert error_of(file, "track: wandb") == f"params.yaml: track is wandb, which needs Weights & Biases: {command}"
        assert Params(track="none").track == "none"


def test_former_names_and_keys_are_read_with_one_warning(caplog):
    warned.clear()
    values = {
        "ingest": {"seconds_a_file": 3},
        "extract": {"engine": "onnxruntime"},
        "compare": {"backbones": ["seed", "resnet18"]},
        "evaluate": {"resamples": 500, "mistakes": 3},
    }
    with without_warnings():  # as the form reads it
        validate(values, "here")
    for _ in range(2):
        found = validate(values, "here")
    assert found.ingest.max_decode_seconds == 3
    assert found.extract.engine == "auto"
    assert found.evaluate.mistakes == 3 and "resamples" not in found.evaluate.model_dump()
    assert found.compare.backbones == ("classics", "resnet18")
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "params.yaml: ingest.seconds_a_file was renamed to max_decode_seconds; change it to max_decode_seconds",
        "params.yaml: extract.engine: onnxruntime was removed and is read as auto; change it to auto",
        "params.yaml: evaluate.resamples is ignored: intervals are computed without resampling; remove it",
        "params.yaml: compare: the group seed was renamed to classics; change it to classics",
    ]
