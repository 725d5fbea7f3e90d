"""`download_public` against a real HTTP server on this machine, with a tiny archive in place of the public one."""

import io
import shutil
import socket
import threading
import zipfile
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from utils.images import download
from utils.images.download import COMMIT, download_public
from utils.system.errors import DataError, UserError

MEMBERS = {
    "Repo-1234567/Data/README.txt": b"about the data",
    "Repo-1234567/Data/Flowers/README.txt": b"where they come from",
    "Repo-1234567/Data/Flowers/Daisy/1.jpg": b"daisy one" * 50,
    "Repo-1234567/Data/Flowers/Daisy/2.JPG": b"daisy two" * 50,
    "Repo-1234567/Data/Flowers/Rose/1.jpg": b"rose" * 50,
    "Repo-1234567/Data/Flowers_extra/Rose/2.jpg": b"not a member of the set",
    "Repo-1234567/Data/AirBnB/bedroom/1.jpg": b"bedroom",
}


def make_zip(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name, content in members.items():
            zipped.writestr(name, content)
    return buffer.getvalue()


class Server:
    """Answers with `body`, `cut` bytes short of what it announced, or with the error `status`."""

    def __init__(self):
        self.body, self.cut, self.status, self.requests = make_zip(MEMBERS), 0, 200, []
        state = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                state.requests.append(self.path)
                if state.status != 200:
                    return self.send_error(state.status)
                self.send_response(200)
                self.send_header("Content-Length", str(len(state.body)))
                self.end_headers()
                self.wfile.write(state.body[: len(state.body) - state.cut])

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/archive"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "PUBLIC_SETS", ("Flowers", "AirBnB"))
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def files(root):
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def archive_in(root):
    return root / ".downloads" / f"Grad_CAM_Siamese-{COMMIT}.zip"


def error_of(server, root, name="Flowers"):
    """The message of the expected error: one line, and nothing unfinished left on the disk."""
    with pytest.raises(DataError) as caught:
        download_public(name, root, server.url)
    message = str(caught.value)
    assert message and "\n" not in message
    assert not [*root.rglob("*.part"), *root.rglob("*.partial")]
    return message


def test_the_set_lands_complete_and_alone(server, tmp_path, capsys):
    folder = download_public("Flowers", tmp_path / "Data", server.url)
    assert folder == tmp_path / "Data" / "Flowers"
    assert files(folder) == {"README.txt", "Daisy/1.jpg", "Daisy/2.JPG", "Rose/1.jpg"}
    assert (folder / "Rose/1.jpg").read_bytes() == b"rose" * 50
    assert {path.name for path in folder.parent.iterdir()} == {".downloads", "Flowers"}
    assert files(folder.parent / ".downloads") == {f"Grad_CAM_Siamese-{COMMIT}.zip"}
    assert set(server.requests) == {f"/archive/{COMMIT}.zip"}
    assert str(archive_in(folder.parent)) in capsys.readouterr().out


def test_the_archive_is_downloaded_once(server, tmp_path, capsys):
    download_public("Flowers", tmp_path, server.url)
    asked = len(server.requests)
    capsys.readouterr()
    assert download_public("Flowers", tmp_path, server.url) == tmp_path / "Flowers"
    assert "already" in capsys.readouterr().out
    download_public("AirBnB", tmp_path, server.url)
    assert files(tmp_path / "AirBnB") == {"bedroom/1.jpg"}
    shutil.rmtree(tmp_path / "Flowers")
    download_public("Flowers", tmp_path, server.url)
    assert len(server.requests) == asked


def test_a_transfer_cut_short_is_noticed_and_forgotten(server, tmp_path):
    archive_in(tmp_path).parent.mkdir()
    archive_in(tmp_path).write_bytes(server.body[:200])  # of a run before
    server.cut = 1
    assert "came damaged or not whole" in error_of(server, tmp_path)
    assert files(tmp_path) == set()
    server.cut = 0
    download_public("Flowers", tmp_path, server.url)


def test_an_archive_with_flipped_bits_is_removed(server, tmp_path):
    archive_in(tmp_path).parent.mkdir()
    archive_in(tmp_path).write_bytes(server.body.replace(b"daisy two", b"daisy 2wo", 1))
    assert "came damaged" in error_of(server, tmp_path)
    assert files(tmp_path) == set()
    download_public("Flowers", tmp_path, server.url)


def test_an_error_of_the_server_is_named_with_what_to_do(server, tmp_path):
    server.status = 429
    message = error_of(server, tmp_path)
    assert "cannot be fetched (HTTP Error 429: " in message and "wait some minutes" in message
    assert download.REPOSITORY in message and str(tmp_path / "Flowers") in message
    assert files(tmp_path) == set()


def test_no_connection(server, tmp_path):
    with socket.socket() as unused:  # bound but not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        server.url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        message = error_of(server, tmp_path)
    assert "cannot be fetched" in message and "refused" in message and download.REPOSITORY in message


def test_a_connection_reset_half_way(server, tmp_path, monkeypatch):
    monkeypatch.setattr(HTTPResponse, "read", lambda *arguments: (_ for _ in ()).throw(ConnectionResetError("reset")))
    assert "cannot be fetched (reset)" in error_of(server, tmp_path)
    assert files(tmp_path) == set()


def test_an_archive_without_the_set_is_damaged(server, tmp_path):
    server.body = make_zip({"Repo-1234567/Data/AirBnB/bedroom/1.jpg": b"bedroom"})
    assert "came damaged or not whole" in error_of(server, tmp_path)


def test_a_member_that_points_outside_stays_inside(server, tmp_path):
    server.body = make_zip(MEMBERS | {"Repo-1234567/Data/Flowers/Daisy/../../../../../escaped.jpg": b"x"})
    download_public("Flowers", tmp_path / "a" / "b", server.url)
    assert [*tmp_path.iterdir()] == [tmp_path / "a"] and not [*tmp_path.glob("*/escaped.jpg")]


def test_a_folder_of_the_user_is_left_alone(server, tmp_path, capsys):
    (tmp_path / "Flowers" / "Mine").mkdir(parents=True)
    (tmp_path / "Flowers" / "Mine" / "a.jpg").write_bytes(b"mine")
    download_public("Flowers", tmp_path, server.url)
    assert "there already; move it away" in capsys.readouterr().out
    assert files(tmp_path) == {"Flowers/Mine/a.jpg"} and not server.requests


def test_a_disk_that_cannot_be_written(server, tmp_path):
    (tmp_path / "Data").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot write to"):
        download_public("Flowers", tmp_path / "Data", server.url)


def test_an_unknown_name_lists_the_known_ones(server, tmp_path):
    message = error_of(server, tmp_path, "Cars")
    assert "Cars" in message and "Flowers, AirBnB" in message
    assert issubclass(DataError, UserError)
