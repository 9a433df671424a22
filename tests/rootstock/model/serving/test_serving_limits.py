"""Limits of a server: on size, number, time and who asks; what is refused harms no other request, and is soon over."""

import contextlib
import socket
import time

import httpx
import pytest

from rootstock.model.model import CHECKS
from rootstock.model.serving import connections
from rootstock.model.serving.limits import MIB, Limits
from rootstock.system.parallel import cores
from tests.served_model import Site, held, serving

TIGHT = Limits(images=3, body_bytes=0.25 * MIB, uploads_bytes=0.5 * MIB, upload_s=1, answer_s=1.5, queue=4)
LEFT = 'rootstock_requests_total{path="/predict",status="499"}'
HEAD = "POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"


@pytest.fixture(scope="module")
def tight(head_model):
    """A server with narrow limits."""
    with serving(head_model, TIGHT) as running:
        yield running


def connection(site: Site, sent: str) -> socket.socket:
    """Connect, and send what may be the beginning of a request."""
    opened = socket.create_connection(("127.0.0.1", site.port), timeout=10)
    opened.sendall(sent.encode())
    return opened


def everything_from(opened: socket.socket) -> str:
    """Read until the server closes the connection."""
    with opened:
        return b"".join(iter(lambda: opened.recv(65536), b"")).decode()


def test_an_image_may_be_as_large_as_for_the_model():
    assert Limits().megapixels == CHECKS.max_megapixels


# Size


def test_too_many_images_are_refused(tight, photos):
    assert tight.predict(photos[:3]).status_code == 200
    answer = tight.predict(photos[:4])
    assert (answer.status_code, answer.json()["detail"]) == (
        413, "The request has too many images; expected at most 3.",
    )  # fmt: skip


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
def test_a_body_that_is_too_large_is_refused_and_not_kept(tight, chunked):
    chunks = (bytes(64 * 1024) for _ in range(5))
    content = chunks if chunked else b"".join(chunks)
    answer = tight.client.post("/predict", content=content, headers={"Content-Type": "image/png"})
    assert answer.status_code == 413
    assert answer.json()["detail"] == "The request is too large; expected at most 0.25 MiB."
    assert tight.metric("rootstock_upload_bytes") == 0


def test_a_body_without_an_end_is_refused_as_it_arrives_and_its_connection_is_soon_closed(tight, monkeypatch):
    monkeypatch.setattr(connections, "REQUEST_S", 0.5)
    begin = time.monotonic()
    opened = connection(tight, f"{HEAD}Transfer-Encoding: chunked\r\n\r\n")
    with pytest.raises(ConnectionError):
        while time.monotonic() < begin + 10:
            opened.sendall(b"10000\r\n" + bytes(0x10000) + b"\r\n")
    assert tight.metric("rootstock_upload_bytes") == 0


@pytest.mark.parametrize(
    "sent",
    ["Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\nno length\r\n", f"Content-Length: {'9' * 5000}\r\n\r\nabc"],
    ids=["chunk", "length"],
)
def test_what_is_no_http_is_refused_without_a_stack_trace(tight, photos, caplog, sent):
    said = everything_from(connection(tight, f"{HEAD}{sent}"))
    assert said.startswith("HTTP/1.1 400 ")
    assert tight.predict(photos[:1]).status_code == 200
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_client_that_reads_no_answer_before_it_has_sent_all_gets_the_answer_and_keeps_its_connection(tight, photos):
    opened = connection(tight, f"{HEAD}Content-Length: {4 * MIB}\r\n\r\n")
    for _ in range(64):
        opened.sendall(bytes(MIB // 16))
        time.sleep(0.005)
    name, data = photos[0]
    opened.sendall(f"{HEAD}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
    first, second = everything_from(opened).split("HTTP/1.1 ")[1:]
    assert first.startswith("413 ") and second.startswith("200 "), name


def test_who_asks_before_sending_a_body_that_is_too_large_is_refused_without_it(tight):
    said = everything_from(connection(tight, f"{HEAD}Content-Length: 99999999\r\nExpect: 100-continue\r\n\r\n"))
    assert said.startswith("HTTP/1.1 413 ") and "100 Continue" not in said and "connection: close" in said.lower()


def test_uploads_together_take_no_more_memory_than_allowed(tight, photos):
    with contextlib.ExitStack() as opened:
        for _ in range(2):
            half = connection(tight, f"{HEAD}Content-Length: 262144\r\n\r\n" + "x" * 260_000)
            opened.enter_context(half)
        tight.waits_for("rootstock_upload_bytes", 520_000)
        answer = tight.predict([("a.png", photos[0][1] + bytes(8000))])
        assert answer.status_code == 503 and "its memory for uploads is full" in answer.json()["detail"]
    tight.waits_for("rootstock_upload_bytes", 0)
    assert tight.predict(photos[:1]).status_code == 200


# Time


def test_an_upload_that_never_ends_is_refused_after_its_time(tight):
    begin = time.monotonic()
    said = everything_from(connection(tight, f"{HEAD}Content-Length: 1000\r\n\r\nno more"))
    assert said.startswith("HTTP/1.1 408 ") and "The upload did not end within 1 s." in said
    assert 0.9 < time.monotonic() - begin < 5


def test_connections_that_send_no_whole_request_are_closed_and_those_in_use_stay_open(head_model, monkeypatch):
    monkeypatch.setattr(connections, "REQUEST_S", 0.4)
    with serving(head_model, TIGHT) as site:
        begin = time.monotonic()
        opened = [connection(site, sent) for sent in ("", "POST /predict HTTP/1.1\r\nHost: 127", "POST /")]
        while time.monotonic() < begin + 1:
            assert site.client.get("/healthz").status_code == 200
            time.sleep(0.1)
        assert [everything_from(each) for each in opened] == ["", "", ""]
        later = connection(site, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(0.6)  # an idle connection is kept
        later.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET ")
        assert everything_from(later).count("HTTP/1.1 200 ") == 2
        assert time.monotonic() - begin < 5


def test_an_answer_that_takes_too_long_is_given_up_and_its_images_are_not_computed(tight, photos):
    with held(tight) as holding:
        asked = [*holding.occupy(photos), tight.ask(photos[:3])]
        answers = [each.result() for each in asked]
        assert [answer.status_code for answer in answers] == [504] * (cores() + 1)
        assert answers[0].json()["detail"] == "Timed out after 1.5 s; the request was cancelled."
        assert tight.metric("rootstock_waiting_images") == 3
        holding.released.set()
        tight.waits_for("rootstock_waiting_images", 0)
        assert holding.images == cores()
    assert tight.predict(photos[:1]).status_code == 200


# Number


def test_a_full_queue_refuses_at_once_and_says_when_to_try_again(site, head_model, photos):
    with serving(head_model, Limits(images=3, queue=3)) as busy:
        with held(busy) as holding:
            waiting = [*holding.occupy(photos), busy.ask(photos[:3])]
            busy.waits_for("rootstock_waiting_images", 3)
            begin = time.monotonic()
            refused = busy.predict(photos[:1])
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
            assert (
                refused.json()["detail"] == "The server is busy: 3 images are waiting already. Try again in a moment."
            )
            assert time.monotonic() - begin < 1
            assert holding.images == cores()
        assert {answer.result().status_code for answer in waiting} == {200}
        assert busy.predict(photos[:3]).json()["images"] == site.predict(photos[:3]).json()["images"]


def test_images_of_a_client_that_has_left_are_not_computed_and_take_no_place(tight, photos):
    left_before = tight.metric(LEFT)
    with held(tight) as holding:
        holding.occupy(photos)
        for left in range(6):  # two more than the queue holds
            with pytest.raises(httpx.ReadTimeout):
                tight.client.post("/predict", files=[("images", photos[left])], timeout=0.1)
        tight.waits_for(LEFT, left_before + 6)
        holding.released.set()
        tight.waits_for("rootstock_waiting_images", 0)
        assert holding.images == cores()
    assert tight.predict(photos[:3]).status_code == 200


def test_more_connections_than_allowed_are_refused(head_model, photos):
    with serving(head_model, Limits(connections=4)) as site:
        idle = [connection(site, "") for _ in range(3)]
        assert site.predict(photos[:1]).status_code == 200
        assert httpx.get(f"http://127.0.0.1:{site.port}/healthz").status_code == 503
        idle += [connection(site, "") for _ in range(7)]
        assert everything_from(idle.pop()) == ""
        for each in idle:
            each.close()
        time.sleep(0.2)
        assert site.predict(photos[:1]).status_code == 200


# Who asks


def test_with_a_token_only_who_knows_it_gets_predictions_and_metrics(head_model, photos):
    token = "schlüssel-0123456789"
    with serving(head_model, token=token) as site:
        for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eA=="}):
            answer = site.client.post("/predict", files=[("images", photos[0])], headers=wrong)
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert answer.json()["detail"].startswith("The token is missing or wrong. Expected the header")
        assert site.client.get("/metrics").status_code == 401
        assert site.client.get("/healthz").status_code == site.client.get("/openapi.json").status_code == 200
        right = {"Authorization": f"Bearer {token}".encode()}
        assert site.client.get("/metrics", headers=right).status_code == 200
        assert site.client.post("/predict", files=[("images", photos[0])], headers=right).status_code == 200


def test_without_a_token_no_page_of_another_site_reaches_the_server_by_its_own_name(site):
    for host, status in (("evil.example", 400), ("localhost:8000", 200), ("[::1]:8000", 200)):
        assert site.client.get("/healthz", headers={"Host": host}).status_code == status
