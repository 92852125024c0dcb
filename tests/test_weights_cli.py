"""``xsoilsm weights``: download, import, list and verify, against a real server and real files."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from safetensors.numpy import load, save

from xsoilsm import ensemble as ensemble_module
from xsoilsm import supply
from xsoilsm.card import read_card
from xsoilsm.catalog import catalogs_dir
from xsoilsm.cli import main
from xsoilsm.ensemble import WeightsError, get_ensemble, list_ensembles
from xsoilsm.network import DenseSM
from xsoilsm.supply import fetch_weights

CARD = catalogs_dir() / "ensembles" / "densesm-e-coarse.yaml"
SMALL = ("1-8", "1-16", "2-8")
SMALL_FILES = ("coarse_1_8.pt", "coarse_1_16.pt", "coarse_2_8.pt")


class Server:
    """Serves files from memory, and misbehaves for one file name on request."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, str] = {}
        self.requests: Counter[str] = Counter()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/nets"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        name = handler.path.rpartition("/")[2]
        self.requests[name] += 1
        fault = self.faults.get(name, "")
        data = self.files.get(name)
        if fault == "busy once" and self.requests[name] == 1:
            handler.send_error(503)
        elif fault in ("404", "500") or data is None:
            handler.send_error(int(fault or 404))
        else:
            if fault == "tampered":
                data = data[:-1] + bytes([data[-1] ^ 1])
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data[: len(data) // 2] if fault == "truncated" else data)


@pytest.fixture
def server(weights_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    server.files = {path.name: path.read_bytes() for path in weights_dir.glob("*.pt")}
    monkeypatch.setenv("XSOILSM_WEIGHTS_URL", server.url)
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test its own cache and data folder, and a process that has loaded nothing."""
    monkeypatch.setenv("XSOILSM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XSOILSM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(ensemble_module, "_loaded", {})
    monkeypatch.setattr("time.sleep", lambda _: None)  # the pauses before another attempt
    return tmp_path / "cache"


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["weights", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def fetch_small() -> Result:
    return run("fetch", *(part for label in SMALL for part in ("--member", label)))


def content_of(folder: Path) -> dict[str, str]:
    """Every file below a folder with its hash; the lock is no content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def failed(result: Result, *texts: str) -> None:
    """Assert that the command failed with one line that says these things, no traceback."""
    assert result.exit_code == 1, result.output
    lines = [line for line in result.stderr.splitlines() if not line.startswith("Licence:")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    for text in texts:
        assert text in lines[0]


def copy_files(weights_dir: Path, folder: Path, names: tuple[str, ...] = SMALL_FILES) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes((weights_dir / name).read_bytes())
    return folder


# Fetching


def test_fetch_downloads_once_and_says_the_licence(server: Server, cache: Path) -> None:
    first = fetch_small()
    assert first.exit_code == 0, first.output
    assert "states a licence" in first.stderr
    assert "10.1016/j.rse.2023.113944" in first.stderr
    assert "3 downloaded, 0 were here" in first.stdout
    assert server.requests == Counter(SMALL_FILES)
    before = content_of(cache)
    second = fetch_small()
    assert "0 downloaded, 3 were here" in second.stdout
    assert "icence" not in second.stderr
    assert server.requests == Counter(SMALL_FILES)
    assert content_of(cache) == before
    assert not [name for name in before if name.endswith(".pt")], "no pickle is kept"


def test_fetched_weights_are_the_published_numbers(
    server: Server, weights_dir: Path, cache: Path
) -> None:
    assert run("fetch").exit_code == 0
    assert sum(server.requests.values()) == 25
    assert run("verify").exit_code == 0
    ensemble = get_ensemble("DenseSM-E")
    for member, state in zip(ensemble.card.members, ensemble.state_dicts(), strict=True):
        expected = torch.load(weights_dir / member.file, map_location="cpu", weights_only=True)
        assert state.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(torch.tensor(state[name]), tensor), (member.label, name)
    assert list_ensembles().set_index("name")["weights"]["densesm-e-coarse"] == 25
    assert "25 of 25" in run("list").stdout


@pytest.mark.parametrize(
    ("fault", "attempts", "texts"),
    [
        ("tampered", 3, ("sha256", "refused", "run the same command again")),
        ("truncated", 3, ("cannot download", "weights import")),
        ("404", 1, ("404", "weights import")),
        ("500", 3, ("500", "weights import")),
    ],
)
def test_bad_transfers_are_refused_and_resumed(
    server: Server, cache: Path, fault: str, attempts: int, texts: tuple[str, ...]
) -> None:
    server.faults["coarse_1_16.pt"] = fault
    failed(fetch_small(), *texts, "coarse_1_16.pt")
    assert server.requests["coarse_1_16.pt"] == attempts
    found = content_of(cache / "weights" / "densesm-e-coarse")
    assert set(found) == {"coarse_1_8.safetensors", "index.json"}, "nothing but what was verified"
    server.faults.clear()
    assert "2 downloaded, 1 were here" in fetch_small().stdout
    assert server.requests["coarse_1_8.pt"] == 1


def test_a_busy_server_is_asked_again(server: Server) -> None:
    server.faults["coarse_1_8.pt"] = "busy once"
    assert run("fetch", "--member", "1-8").exit_code == 0
    assert server.requests["coarse_1_8.pt"] == 2


def test_no_server_is_one_line(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    monkeypatch.setenv("XSOILSM_WEIGHTS_URL", "http://127.0.0.1:9/nets/")
    failed(fetch_small(), "cannot download http://127.0.0.1:9/nets/coarse_1_8.pt", "import")


def test_an_interrupted_fetch_keeps_what_was_verified(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = read_card(CARD)
    seen: list[str] = []
    download = supply._download

    def interrupted(address: str, *rest: Any) -> Path:
        if address.endswith("coarse_1_16.pt"):
            raise KeyboardInterrupt
        return download(address, *rest)

    monkeypatch.setattr(supply, "_download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch_weights(card, card.members[:3], notify=seen.append)
    assert len(seen) == 1
    folder = cache / "weights" / card.name
    assert set(content_of(folder)) == {"coarse_1_8.safetensors", "index.json"}
    assert not list(folder.glob(".part-*"))


def test_two_processes_fetch_at_once(server: Server, cache: Path) -> None:
    arguments = [part for label in SMALL for part in ("--member", label)]
    code = "from xsoilsm.cli import main; main()"
    command = [sys.executable, "-c", code, "weights", "fetch", *arguments]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert server.requests == Counter(SMALL_FILES), "each file was downloaded by one of them"
    result = run("verify")
    assert result.stdout.count(" ok") == 3
    assert "damaged" not in result.stdout
    assert not list(cache.rglob(".part-*"))


def test_leftovers_of_a_killed_process_are_swept(server: Server, cache: Path) -> None:
    left = cache / "weights" / "densesm-e-coarse" / ".part-dead"
    left.mkdir(parents=True)
    (left / "coarse_1_8.pt").write_bytes(b"half")
    assert run("fetch", "--member", "1-8").exit_code == 0
    assert not left.exists()


def test_cache_that_cannot_be_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XSOILSM_CACHE_DIR", str(tmp_path / "file"))
    result = fetch_small()
    assert result.exit_code == 1
    assert "XSOILSM_CACHE_DIR" in result.stderr.splitlines()[-1]
    assert not server.requests


# A card whose hashes fit files that are still wrong


def foreign_card(tmp_path: Path, data: bytes) -> Path:
    """Card of one member 1-8 with the hash of `data`."""
    card: dict[str, Any] = yaml.safe_load(CARD.read_text())
    member = {
        "depth": 1,
        "width": 8,
        "file": "foreign.pt",
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    path = tmp_path / "foreign.yaml"
    path.write_text(yaml.safe_dump(card | {"name": "foreign", "members": [member]}))
    return path


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def wrong_files(tmp_path: Path) -> dict[str, bytes]:
    files = {}
    state = DenseSM(1, 8).state_dict()
    file = tmp_path / "made.pt"
    for name, content in {
        "shape": DenseSM(1, 16).state_dict(),
        "missing": {k: v for k, v in state.items() if k != "norm.num_batches_tracked"},
        "finite": dict(state) | {"out.bias": torch.tensor([torch.inf])},
        "list": [1, 2, 3],
        "module": DenseSM(1, 8),
        "bomb": dict(state) | {"bomb": Bomb(tmp_path / "executed")},
    }.items():
        torch.save(content, file)
        files[name] = file.read_bytes()
    files["truncated"] = files["shape"][:-1000]
    files["raw bomb"] = pickle.dumps(Bomb(tmp_path / "executed"))
    files["text"] = b"not a network"
    file.unlink()
    return files


def test_wrong_files_with_the_right_hash_are_refused(
    server: Server, cache: Path, tmp_path: Path
) -> None:
    assert run("fetch", "--member", "1-8").exit_code == 0
    before = content_of(cache)
    for name, data in wrong_files(tmp_path).items():
        server.files["foreign.pt"] = data
        card = foreign_card(tmp_path, data)
        folder = tmp_path / "copies"
        folder.mkdir(exist_ok=True)
        (folder / "foreign.pt").write_bytes(data)
        state_fault = name in ("shape", "missing", "finite")
        text = "does not hold a DenseSM-1-8" if state_fault else "not a plain state dict"
        failed(run("fetch", card), text)
        failed(run("import", folder, card), text)
        assert content_of(cache) == before, name
    assert not (tmp_path / "executed").exists()


def test_other_values_than_the_card_lists_are_refused(
    server: Server, cache: Path, tmp_path: Path
) -> None:
    """Hash of the file right, hash of the values wrong: a card that contradicts itself."""
    data = server.files["coarse_1_8.pt"]
    server.files["foreign.pt"] = data
    path = foreign_card(tmp_path, data)
    assert run("fetch", path).exit_code == 0
    card = yaml.safe_load(path.read_text())
    card["members"][0]["tensors_sha256"] = "0" * 64
    path.write_text(yaml.safe_dump(card))
    with pytest.raises(WeightsError, match="differ from those that the card lists"):
        get_ensemble(path).state_dicts()


# Importing


def test_import_from_a_folder(weights_dir: Path, cache: Path) -> None:
    result = run("import", weights_dir)
    assert result.exit_code == 0, result.output
    assert "25 imported, 0 were here" in result.stdout
    assert "states a licence" in result.stderr
    before = content_of(cache)
    assert "0 imported, 25 were here" in run("import", weights_dir, "DenseSM-E").stdout
    assert content_of(cache) == before
    assert run("verify").exit_code == 0


def test_import_and_fetch_store_the_same_bytes(
    server: Server, weights_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_small()
    fetched = content_of(tmp_path / "cache")
    monkeypatch.setenv("XSOILSM_CACHE_DIR", str(tmp_path / "other"))
    run("import", weights_dir, *(part for label in SMALL for part in ("--member", label)))
    assert content_of(tmp_path / "other") == fetched


@pytest.mark.parametrize("prefix", ["", "a/b c/", "../../", "/abs/"])
def test_import_from_an_archive_unpacks_nothing(
    weights_dir: Path, cache: Path, tmp_path: Path, prefix: str
) -> None:
    archive = tmp_path / "deep" / "down" / "nets.zip"
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("__MACOSX/._coarse_1_8.pt", b"noise")
        file.writestr("readme.txt", b"hello")
        file.writestr(f"{prefix}coarse_1_8.pt", (weights_dir / "coarse_1_8.pt").read_bytes())
    before = set(content_of(tmp_path))
    result = run("import", archive, "--member", "1-8")
    assert result.exit_code == 0, result.output
    new = set(content_of(tmp_path)) - before
    folder = "cache/weights/densesm-e-coarse/"
    assert new == {f"{folder}coarse_1_8.safetensors", f"{folder}index.json"}


def test_files_with_other_names_are_known_by_their_hash(weights_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in" / "DenseSM_9km"
    folder.mkdir(parents=True)
    (folder / "net-a.pth").write_bytes((weights_dir / "coarse_1_8.pt").read_bytes())
    (folder / "coarse_1_8.pt").write_bytes(b"a draft of the same name")
    assert run("import", tmp_path / "in", "--member", "1-8").exit_code == 0


def test_one_bad_file_keeps_all_out(weights_dir: Path, cache: Path, tmp_path: Path) -> None:
    labels = [part for label in SMALL for part in ("--member", label)]
    folder = copy_files(weights_dir, tmp_path / "in")
    last = folder / SMALL_FILES[-1]
    original = last.read_bytes()
    tampered = bytearray(original)
    tampered[len(original) // 2] ^= 1
    for data in (bytes(tampered), original[:-1], b"", pickle.dumps(Bomb(tmp_path / "executed"))):
        last.write_bytes(data)
        failed(run("import", folder, *labels), SMALL_FILES[-1], "sha256", "nothing was imported")
    last.unlink()
    failed(run("import", folder, *labels), f"lacks {SMALL_FILES[-1]}")
    failed(run("import", folder), "and 20 more")
    assert content_of(tmp_path / "cache") == {}
    assert not (tmp_path / "executed").exists()


def test_import_of_what_is_no_archive(tmp_path: Path, weights_dir: Path) -> None:
    path = tmp_path / "nets.zip"
    path.write_bytes(b"PK\x03\x04 nothing")
    failed(run("import", path), "neither a folder nor a zip archive")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("coarse_1_8.pt", (weights_dir / "coarse_1_8.pt").read_bytes())
    data = bytearray(path.read_bytes())
    data[200:260] = bytes(60)
    path.write_bytes(data)
    failed(run("import", path, "--member", "1-8"), "cannot read", "coarse_1_8.pt")
    assert run("import", tmp_path / "nowhere").exit_code == 2


def test_import_installs_a_folder_with_a_card(tmp_path: Path) -> None:
    card = yaml.safe_load(CARD.read_text())
    del card["source"]
    member = {"depth": 1, "width": 8, "file": "m.pt"}
    card |= {"name": "mine", "resolution": "1km", "members": [member]}
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    torch.save(DenseSM(1, 8).state_dict(), folder / "m.pt")
    result = run("import", folder)
    assert result.exit_code == 0, result.output
    assert get_ensemble("DenseSM-E", "1km").name == "mine"
    assert run("verify", "mine").exit_code == 0
    failed(run("import", folder), "exists")
    failed(run("fetch", "mine"), "has no source")


def test_the_folder_in_the_environment_is_used(
    weights_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XSOILSM_WEIGHTS_DIR", str(weights_dir))
    with caplog.at_level("INFO", logger="xsoilsm"):
        get_ensemble("DenseSM-E").require_weights()
    assert "XSOILSM_WEIGHTS_DIR" in caplog.text
    assert list_ensembles().set_index("name")["weights"]["densesm-e-coarse"] == 25
    monkeypatch.delenv("XSOILSM_WEIGHTS_DIR")
    assert len(get_ensemble("DenseSM-E").state_dicts()) == 25


def test_an_environment_that_does_not_help_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XSOILSM_WEIGHTS_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(WeightsError, match=r"weights fetch.*XSOILSM_WEIGHTS_DIR.*does not exist"):
        get_ensemble("DenseSM-E").state_dicts()


# Verifying


def test_damage_in_the_cache_is_found_and_healed(
    server: Server, cache: Path, weights_dir: Path
) -> None:
    assert run("import", weights_dir).exit_code == 0
    folder = cache / "weights" / "densesm-e-coarse"
    file = folder / "coarse_1_16.safetensors"
    data = file.read_bytes()
    for damage in (data[:-4] + b"\0\0\0\1", data[:-50], b""):
        file.write_bytes(damage)
        result = run("verify")
        failed(result, "damaged", "coarse_1_16.safetensors", "weights fetch densesm-e-coarse")
        assert result.stdout.count("damaged") == 1
        with pytest.raises(WeightsError, match=r"damaged.*weights fetch densesm-e-coarse"):
            get_ensemble("DenseSM-E").state_dicts()
        assert "1 downloaded, 24 were here" in run("fetch").stdout
        assert file.read_bytes() == data
    file.unlink()
    failed(run("verify"), "1 of the 25 members are missing", "weights fetch densesm-e-coarse")
    assert run("verify").stdout.count("missing") == 1


def test_a_broken_index_counts_as_empty(server: Server, cache: Path) -> None:
    assert fetch_small().exit_code == 0
    for text in ("{", "[]", '{"members": {"coarse_1_8.pt": {}}}'):
        (cache / "weights" / "densesm-e-coarse" / "index.json").write_text(text)
        assert run("verify").stdout.count("missing") == 25
        assert "3 downloaded" in fetch_small().stdout


def test_swapped_files_with_a_matching_index_are_found(server: Server, cache: Path) -> None:
    """The hash of the values is on the card, out of reach of whoever writes to the cache."""
    assert run("fetch", "--member", "1-8").exit_code == 0
    folder = cache / "weights" / "densesm-e-coarse"
    file = folder / "coarse_1_8.safetensors"
    old = file.read_bytes()
    arrays = load(old)
    arrays["out.bias"] += 1
    file.write_bytes(save(arrays))
    new = hashlib.sha256(file.read_bytes()).hexdigest()
    index = folder / "index.json"
    index.write_text(index.read_text().replace(hashlib.sha256(old).hexdigest(), new))
    assert "damaged" in run("verify").stdout


# The command line itself


def test_list_names_the_published_ensemble() -> None:
    result = run("list")
    assert result.exit_code == 0
    assert "densesm-e-coarse" in result.stdout
    assert "0 of 25" in result.stdout
    assert "none stated" in result.stdout


@pytest.mark.parametrize("command", ["fetch", "verify"])
def test_unknown_names_list_the_known(command: str) -> None:
    failed(run(command, "DenseSM-F"), "'DenseSM-F'", "densesm-e-coarse")


def test_unknown_members_list_the_known() -> None:
    failed(run("fetch", "--member", "9-9"), "no member '9-9'", "1-8, 1-16")


def test_help_and_version_come_without_heavy_imports() -> None:
    code = (
        "import sys; from xsoilsm.cli import main; main(sys.argv[1:], standalone_mode=False);"
        "print([m for m in ('torch', 'rasterio', 'numba', 'pooch') if m in sys.modules])"
    )
    for arguments, text in ((["weights", "--help"], "import"), (["--version"], "version")):
        command = [sys.executable, "-c", code, *arguments]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert text in shown
        assert shown.splitlines()[-1] == "[]"
