"""Unsafe names of runs and files are harmless in every place where they are shown."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from flows.ui import processes, reports as reports_server
from rootstock.system import entry_points
from tasks.bridge import artifacts
from tests.rootstock.system.test_escape import NASTY

SERVED = "http://127.0.0.1:1/key"


@pytest.fixture
def reports(tmp_path, monkeypatch) -> Path:
    """The folder of reports in a workspace, and where it is served."""
    inside = tmp_path / "a" / "workspace"
    inside.mkdir(parents=True)
    (inside / "page.html").write_text("mine")
    monkeypatch.chdir(inside)
    monkeypatch.setenv("ROOTSTOCK_REPORTS_URL", SERVED)
    return inside / ".rootstock" / "reports"


def test_a_report_stays_within_the_folder_of_reports_whatever_the_name_of_its_run(reports, tmp_path):
    (tmp_path / "out").mkdir()
    before = everything(tmp_path) - everything(reports)
    addresses = {artifacts._publish_report(name, Path("page.html")) for name in NASTY}
    assert len(addresses) == len(NASTY)
    assert everything(tmp_path) - everything(reports) == before
    published = {path.name for path in reports.iterdir()}
    assert addresses == {f"{SERVED}/{name}" for name in published}


def everything(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_a_link_in_place_of_a_report_is_replaced_and_not_followed(reports, tmp_path):
    target = tmp_path / "target.html"
    target.write_text("not to be touched")
    reports.mkdir(parents=True)
    (reports / "wise-goat.html").symlink_to(target)
    (reports / "nowhere.html").symlink_to(tmp_path / "nowhere")
    artifacts._publish_report("wise-goat", Path("page.html"))
    assert target.read_text() == "not to be touched"
    assert not (reports / "wise-goat.html").is_symlink()
    assert (reports / "wise-goat.html").read_text() == "mine"


def test_code_and_names_in_markdown_are_shown_literally():
    said = artifacts._note("Kept as experiment a: `dvc exp apply a` brings <b>back</b> `it|`.")
    assert said == r"Kept as experiment a: `dvc exp apply a` brings &lt;b&gt;back&lt;/b&gt; \`it\|\`."


def test_control_sequences_in_names_are_not_sent_to_a_terminal():
    command = (
        "import logging, sys\n"
        "from rootstock.system.errors import RootstockError\n"
        "from rootstock.system.entry_points import entry_point\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "with entry_point('try'):\n"
        "    name = chr(27) + '[2J' + chr(0x202e) + chr(0x9b) + '.png'\n"
        "    print('printed', name, 'é', sep='\\t')\n"
        "    logging.getLogger('rootstock').info('logged %s', name)\n"
        "    raise RootstockError('raised ' + name + '\\nand more')\n"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    shown = r"\x1b[2J\u202e\x9b.png"
    assert done.returncode == 1
    assert done.stdout == f"printed\t{shown}\té\n"
    assert done.stderr == f"INFO:rootstock:logged {shown}\ntry: raised {shown}\nand more\n"


def test_a_message_that_does_not_fit_its_values_is_logged_as_before():
    assert entry_points._record(logging.LogRecord, "a", 20, "f", 1, "%d", ("x",), None).msg == "%d"


@pytest.mark.parametrize("content", [None, "", "\n", "short", "a/b" * 8, "é" * 24, "x" * 23, "x" * 24 + "\n"])
def test_reports_have_an_unguessable_key_even_if_its_file_is_damaged(tmp_path, content):
    if content is not None:
        (tmp_path / "reports.key").write_text(content)
    key = reports_server.key_of(tmp_path)
    assert len(set(key)) > 8
    assert reports_server.key_of(tmp_path) == key


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "7",
        '{"a": 1}',
        '{"1": "b"}',
        '{"1": null}',
        '{"-1": 1}',
        '{"9e9": 1}',
        f'{{"{10**30}": 1}}',
        '{"1": 0.5}',
    ],
)
def test_a_damaged_list_of_started_processes_stops_no_process(tmp_path, content):
    (tmp_path / processes.STARTED).write_text(content)
    assert not processes.stop_left_behind(tmp_path)
