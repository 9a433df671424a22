"""nginx in front of the server and the reports: which requests are answered, and which are not."""

import os
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployment_examples import COMPOSE, EXAMPLES, SAFE, named, run, tool
from tests.serving import free_port, process, until


def test_nginx_accepts_all_files(tmp_path):
    nginx, openssl = tool("nginx"), tool("openssl")
    run(nginx, "-t", "-c", str(nginx_files(tmp_path, openssl)), "-e", f"{tmp_path}/log")


def nginx_files(folder: Path, openssl: str) -> Path:
    """Write one configuration of the files of both hosts, with a certificate."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    made = ["-newkey", "rsa:2048", "-nodes", "-subj", "/CN=prefect.example.org", "-keyout", str(key)]
    run(openssl, "req", "-x509", *made, "-out", str(certificate))
    servers = "".join(path.read_text() for path in sorted((EXAMPLES / "nginx").iterdir()))
    servers = re.sub(r"(ssl_certificate_key\s+)\S+;", rf"\1{key};", servers)
    servers = re.sub(r"(ssl_certificate\s+)\S+;", rf"\1{certificate};", servers)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    whole = folder / "nginx.conf"
    main = f"daemon off;\npid {folder}/pid;\nerror_log {folder}/log;\nevents {{}}\n"
    whole.write_text(f"{main}http {{\naccess_log off;\n{folders}{servers}\n}}\n")
    return whole


def test_a_server_requires_a_secret_and_answers_only_its_own_pages():
    env = (EXAMPLES / "env" / "server.env").read_text()
    proxy = (EXAMPLES / "nginx" / "prefect.conf").read_text()
    [own] = named(r"^PREFECT_UI_URL=(\S+)", EXAMPLES / "env" / "server.env")
    for text in (env, COMPOSE, (EXAMPLES / "docker" / "example.env").read_text()):
        assert "PREFECT_SERVER_API_AUTH_STRING" in text
        assert "PREFECT_SERVER_CORS_ALLOWED_ORIGINS" in text
    assert f"PREFECT_SERVER_CORS_ALLOWED_ORIGINS={own}\n" in env
    assert f"    {own}   0;\n" in proxy
    assert "--host 127.0.0.1 " in (EXAMPLES / "systemd" / "rootstock-server.service").read_text()
    assert SAFE.load(COMPOSE)["services"]["server"]["ports"] == ["127.0.0.1:4200:4200"]
    for worker in (EXAMPLES / "env" / "worker.env", EXAMPLES / "kubernetes" / "worker.yaml"):
        assert "PREFECT_API_AUTH_STRING" in worker.read_text()


@pytest.fixture
def nginx(tmp_path) -> Iterator[int]:
    """Run nginx with the files of both hosts, with a stub behind it, on ports of its own; gives that of https."""
    program, openssl = tool("nginx"), tool("openssl")
    port = free_port()
    whole = nginx_files(tmp_path, openssl)
    here = whole.read_text().replace("listen 443", f"listen 127.0.0.1:{port}")
    here = here.replace("listen 80", f"listen 127.0.0.1:{port + 1}")
    whole.write_text(re.sub(r"proxy_pass \S+;", "return 200 answered;", here))
    with process([program, "-c", str(whole), "-e", f"{tmp_path}/log"], dict(os.environ)):
        until(lambda: answered_by_nginx(port, "prefect.example.org", "prefect.example.org"), "nginx", 20)
        yield port


def answered_by_nginx(port: int, called: str, host: str, **headers: str) -> str:
    """Ask over TLS by one name, and in the request by another; gives the status, or nothing where it hangs up."""
    context = ssl._create_unverified_context()
    asked = "".join(f"{name}: {value}\r\n" for name, value in {"Host": host, **headers}.items())
    try:
        with (
            socket.create_connection(("127.0.0.1", port), 5) as plain,
            context.wrap_socket(plain, server_hostname=called) as connection,
        ):
            connection.sendall(f"GET /api/flows HTTP/1.1\r\n{asked}Connection: close\r\n\r\n".encode())
            return connection.recv(4096).decode().split(" ")[1] if called else ""
    except (OSError, IndexError):
        return ""


def test_nginx_answers_only_requests_to_its_name_and_none_from_pages_of_other_sites(nginx):
    own = "prefect.example.org"
    assert answered_by_nginx(nginx, own, own) == "200"
    assert answered_by_nginx(nginx, own, own, Origin=f"https://{own}") == "200"
    for origin in ("https://evil.example", "null", f"http://{own}", f"https://{own}.evil.example", f"https://{own}:1"):
        assert answered_by_nginx(nginx, own, own, Origin=origin) == "403", origin
    for called, host in (
        ("evil.example", "evil.example"),
        (own, "evil.example"),
        (own, "127.0.0.1"),
        (own, "localhost"),
    ):
        assert answered_by_nginx(nginx, called, host) == "", host


def test_nginx_serves_the_server_and_the_reports():
    proxy, reports = ((EXAMPLES / "nginx" / f"{name}.conf").read_text() for name in ("prefect", "reports"))
    [listens] = named(r"--port (\d+)", EXAMPLES / "systemd" / "rootstock-server.service")
    assert f"proxy_pass http://127.0.0.1:{listens};" in proxy
    assert "proxy_set_header Upgrade $http_upgrade;" in proxy
    [address] = named(r"^ROOTSTOCK_REPORTS_URL=https://(\S+)", EXAMPLES / "env" / "worker.env")
    host, _, place = address.partition("/")
    assert f"server_name {host};" in reports
    assert f"location /{place}/ {{" in reports
    assert "alias /srv/rootstock/.rootstock/reports/;" in reports
