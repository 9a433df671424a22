"""Requests and answers: what `Model.predict` says, as JSON, a row per image; or a status with a sentence."""

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import rootstock
from tests.image_files import RGB
from tests.image_writers import png

FORM = "multipart/form-data; boundary=x"
PART = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n%s\r\n--x--\r\n'


def test_answers_are_those_of_the_model_one_row_per_image_in_order(site, head_model, photos):
    files = [*photos, ("page", b"<html>404</html>"), ("cut.png", photos[0][1][:300])]
    answer = site.predict(files)
    model = rootstock.load_model(head_model)
    expected = model.predict([data for _, data in files])
    assert answer.status_code == 200 and re.fullmatch(r"model@[0-9a-f]{12}", answer.json()["model"])
    rows = answer.json()["images"]
    assert [row["name"] for row in rows] == [name for name, _ in files]
    for row, one in zip(rows[:12], expected[:12], strict=True):
        best = sorted(one.probabilities, key=one.probabilities.__getitem__, reverse=True)
        assert (row["label"], row["unknown"], row["reason"], row["detail"]) == (one.label, one.unknown, None, None)
        assert [each["label"] for each in row["top"]] == best and row["probability"] == row["top"][0]["probability"]
        assert [each["probability"] for each in row["top"]] == pytest.approx(
            [one.probabilities[label] for label in best], abs=2e-6
        )
        assert row["novelty"] == pytest.approx(one.novelty, abs=2e-6)
    for row in rows[12:]:
        assert (row["label"], row["probability"], row["top"], row["novelty"]) == (None, None, [], None)
    reasons = [row["reason"] for row in rows[12:]]
    assert reasons == [one.reason for one in expected[12:]] == ["not_an_image", "truncated"]


def test_a_single_image_may_be_the_body(site, photos):
    name, data = photos[0]
    answer = site.client.post("/predict", content=data, headers={"Content-Type": "image/png"}).json()
    [row] = site.predict([(name, data)]).json()["images"]
    assert answer["images"] == [{**row, "name": "image 0"}]


@pytest.mark.parametrize(
    ("body", "kind", "status", "said"),
    [
        (b"", "image/png", 400, "The request holds no image. Expected multipart/form-data with a file per image"),
        (b"--x--\r\n", FORM, 400, "The request holds no image."),
        (b'{"images": NaN}', "application/json", 415, "The content type is 'application/json'. Expected multipart"),
        (PART.replace(b'; filename="a.png"', b"") % b"text", FORM, 400, "A field of the form is no file."),
        (b"no form", FORM, 400, "The form cannot be read: "),
        (b"", "multipart/form-data", 400, "The form cannot be read: Missing boundary"),
        (PART % b"", f"{FORM}; charset=undefined", 400, "The form cannot be read: Its encoding is not known."),
        (PART % (b"\r\n--x\r\n" + b"A" * 9000 + b": b\r\n\r\n"), FORM, 400, "The form cannot be read: "),
    ],
)
def test_a_request_that_is_wrong_as_a_whole_has_a_status_and_a_sentence(site, body, kind, status, said):
    answer = site.client.post("/predict", content=body, headers={"Content-Type": kind})
    assert answer.status_code == status and answer.json()["detail"].startswith(said), answer.text


@pytest.mark.parametrize(
    ("sent", "shown"),
    [("../../etc/passwd", "../../etc/passwd"), ("a\x1b[2Jb.png", "a\\x1b[2Jb.png"), ("x" * 999, "x" * 255), ("é", "é")],
)
def test_names_of_files_are_only_shown(site, photos, sent, shown):
    body = PART.replace(b"a.png", sent.encode()) % photos[0][1]
    answer = site.client.post("/predict", content=body, headers={"Content-Type": FORM})
    assert [row["name"] for row in answer.json()["images"]] == [shown]


def test_images_that_would_unpack_to_gigabytes_are_rejected_by_their_header(site, photos):
    bomb = png(RGB, 8, 2).replace(
        RGB.shape[1].to_bytes(4, "big") + RGB.shape[0].to_bytes(4, "big"), (2**30).to_bytes(4, "big") * 2
    )
    rows = site.predict([("bomb.png", bomb), photos[0]]).json()["images"]
    assert [row["reason"] for row in rows] == ["too_large", None]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=60) | st.builds(lambda data: PART % data, st.binary(max_size=60)),
    kind=st.sampled_from([FORM, "image/png", "text/plain", "multipart/form-data; boundary=\xe9; charset=\xe9"]),
    disposition=st.binary(max_size=20),
)
def test_no_body_breaks_the_server(site, body, kind, disposition):
    body = body.replace(b"a.png", disposition)
    answer = site.client.post("/predict", content=body, headers={"Content-Type": kind.encode("latin-1")})
    assert answer.status_code in (200, 400, 415) and answer.json(), answer.text


def test_the_openapi_page_describes_the_answers_and_loads_nothing_from_elsewhere(site):
    page = site.client.get("/docs").text
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert loaded and all(path.startswith("/") for path in loaded)
    assert all(site.client.get(path).status_code == 200 for path in loaded)
    described = site.client.get("/openapi.json").json()
    predict = described["paths"]["/predict"]["post"]
    assert set(predict["requestBody"]["content"]) == {"multipart/form-data", "image/*"}
    assert {"200", "400", "401", "408", "413", "415", "503", "504"} <= set(predict["responses"])
    assert {"name", "label", "labels", "probability", "top", "unknown", "novelty", "reason", "detail"} == set(
        described["components"]["schemas"]["ImageAnswer"]["properties"]
    )


def test_unknown_paths_and_methods_are_refused(site):
    assert site.client.get("/predict").status_code == 405
    assert site.client.get("/../../etc/passwd").status_code == 404
    assert site.client.get("/static-offline-docs/%2e%2e/core.py").status_code == 404


def test_healthz_says_which_model_answers(site, photos):
    assert site.client.get("/healthz").json() == {
        "status": "ok",
        "model": site.predict(photos[:1]).json()["model"],
    }


def test_a_small_answer_is_not_held_back_until_the_client_acknowledges_its_headers(site):
    fastest = min(site.client.get("/healthz").elapsed.total_seconds() for _ in range(20))
    assert fastest < 0.03  # Nagle's algorithm and delayed acknowledgements make it 0.04


def test_metrics_count_requests_by_status_images_by_outcome_and_batches(site, photos):
    names = (
        'rootstock_requests_total{path="/predict",status="200"}',
        'rootstock_requests_total{path="/predict",status="415"}',
        'rootstock_images_total{outcome="rejected"}',
        'rootstock_request_seconds_count{path="/predict"}',
        "rootstock_batch_images_sum",
    )
    before = [site.metric(name) for name in names]
    site.predict([photos[0], ("bad.png", b"bad")])
    site.client.post("/predict", content=b"{}", headers={"Content-Type": "application/json"})
    site.client.get("/elsewhere")
    after = [site.metric(name) for name in names]
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1, 1, 2, 1]
    assert site.metric('rootstock_requests_total{path="other",status="404"}') >= 1
    assert site.metric("rootstock_waiting_images") == site.metric("rootstock_upload_bytes") == 0
    model = json.dumps(site.running.follower.current.name)
    assert site.metric(f"rootstock_model{{model={model}}}") == 1
