"""The server of reports says nothing on the terminal where a browser hangs up."""

import os
import socket
import struct

from flows.ui import reports
from tests.serving import free_port, until

KEY = "k" * 24


def test_a_tab_that_is_closed_while_its_report_loads_is_no_error(tmp_path, capfd):
    (tmp_path / "large.html").write_bytes(os.urandom(30_000_000))
    port = free_port()
    with reports.serving("127.0.0.1", port, tmp_path, KEY):
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port)) as tab:
                tab.sendall(f"GET /{KEY}/large.html HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
                tab.recv(1000)
                tab.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # resets the connection
        with socket.create_connection(("127.0.0.1", port)) as tab:
            tab.sendall(f"HEAD /{KEY}/large.html HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            assert until(lambda: b"200 OK" in tab.recv(1000), "the header")
    assert capfd.readouterr().err == ""
