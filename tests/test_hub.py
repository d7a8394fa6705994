"""Models and data sets of the hub, fetched from a hub on loopback by the real client libraries.

The libraries read HF_ENDPOINT and HF_HOME when they are imported, so everything that fetches runs in a process of its
own; one process does many things, because starting it is what takes time.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from qconvert.checkpoint import Checkpoint, hub_identity, resolve_source
from qconvert.errors import UserError
from tests.hub_server import Hub, serve
from tests.tiny import write_tiny_checkpoint

ROOT = Path(__file__).parents[1]

# Reads a list of jobs from its argument, writes a list of [exit code, stdout, stderr].
CHILD = """
import json, sys
from click.testing import CliRunner
from qconvert.cli import main
from qconvert.errors import UserError

def data(spec):
    from qconvert_evals.data import load_documents
    try:
        return [0, json.dumps([[d.id, d.domain, d.text] for d in load_documents(spec)]), ""]
    except UserError as error:
        return [2, "", f"error: {error}"]

def command(arguments):
    result = CliRunner().invoke(main, arguments)
    return [result.exit_code, result.stdout, result.stderr]

answers = [data(job[1]) if job[0] == "data" else command(job) for job in json.loads(sys.argv[1])]
print(json.dumps(answers))
"""


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The one message of a refusal; what the hub's library says beside it is not counted."""
        assert self.code == 2, self
        assert "Traceback" not in self.err
        assert self.err.count("error: ") == 1, self.err
        return self.err[self.err.index("error: ") :]


def environment(url: str, home: Path, **more: str) -> dict[str, str]:
    """No setting of whoever runs the tests: no token, no other cache, no proxy between us and loopback."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    paths = os.pathsep.join(str(ROOT / room) for room in (".", "evals", "reference"))
    own = {"HF_ENDPOINT": url, "HF_HOME": str(home), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return kept | own | {"HF_HUB_DISABLE_TELEMETRY": "1"} | more


def answers(environment: dict[str, str], *jobs: list[str]) -> list[Answer]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(jobs)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return [Answer(*one) for one in json.loads(done.stdout.splitlines()[-1])]


def files_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@dataclass
class Fetched:
    """A model that one process has quantized from the hub."""

    hub: Hub
    source: Path
    home: Path
    target: Path
    sha: str


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serve() as running:
        yield running


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("hub") / "source")


@pytest.fixture(scope="module")
def fetched(hub: Hub, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Fetched:
    folder = tmp_path_factory.mktemp("fetched")
    sha = hub.add("models", "org/tiny", files_of(source) | {"pytorch_model.bin": b"a pickle", "custom.py": b"evil()"})
    done = subprocess.run(
        [sys.executable, "-m", "qconvert", "quantize", "org/tiny@v1", str(folder / "fp8"), "--json"],
        env=environment(hub.url, folder / "home"), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Fetched(hub, source, folder / "home", folder / "fp8", sha)


def test_a_model_of_the_hub_is_quantized_like_the_same_folder(fetched: Fetched, tmp_path: Path) -> None:
    from qconvert.quantization import quantize

    quantize(fetched.source, tmp_path / "fp8")
    here, there = files_of(tmp_path / "fp8"), files_of(fetched.target)
    for files in (here, there):
        files.pop("qconvert.json")
    assert here == there


def test_the_manifest_names_repository_and_commit(fetched: Fetched) -> None:
    origin = json.loads((fetched.target / "qconvert.json").read_text())["source"]
    assert (origin["repository"], origin["revision"]) == ("org/tiny", fetched.sha)


def test_neither_pickles_nor_code_are_asked_for(fetched: Fetched) -> None:
    asked = [request for request in fetched.hub.requests if "/org/tiny/" in request]
    assert any(request.startswith("GET ") and request.endswith(".safetensors") for request in asked)
    assert not [request for request in asked if "pytorch_model.bin" in request or "custom.py" in request]
    assert not [name for name in files_of(fetched.home) if name.endswith((".bin", ".py"))]


def snapshot(fetched: Fetched) -> Path:
    return fetched.home / "hub" / "models--org--tiny" / "snapshots" / fetched.sha


def test_links_of_the_cache_are_accepted(fetched: Fetched) -> None:
    shard = snapshot(fetched) / "model-00001-of-00002.safetensors"
    assert shard.is_symlink() and shard.resolve().parent.name == "blobs"
    assert Checkpoint.open(snapshot(fetched)).tensors.keys() == Checkpoint.open(fetched.source).tensors.keys()


def cache_with_shared_store(source: Path, cache: Path, store: Path) -> Path:
    """A snapshot as huggingface_hub 2 lays it out for files from Xet: snapshot -> blobs of the model -> one store."""
    root = cache / "models--org--tiny" / "snapshots" / "0123abcd"
    blobs = cache / "models--org--tiny" / "blobs"
    for folder in (root, blobs, store):
        folder.mkdir(parents=True)
    for name, data in files_of(source).items():
        (store / f"{name}.hash").write_bytes(data)
        (blobs / name).symlink_to(store / f"{name}.hash")
        (root / name).symlink_to(f"../../blobs/{name}")
    return root


def test_links_into_the_store_that_all_models_share(source: Path, tmp_path: Path) -> None:
    root = cache_with_shared_store(source, tmp_path, tmp_path / "blobs" / "ab")
    checkpoint = Checkpoint.open(root)
    assert checkpoint.file("LICENSE").read_text() == "free\n"
    assert hub_identity(root) == {"repository": "org/tiny", "revision": "0123abcd"}
    elsewhere = cache_with_shared_store(source, tmp_path / "other", tmp_path / "secrets")
    with pytest.raises(UserError, match="a link that leads out of the folder"):
        Checkpoint.open(elsewhere)


def test_offline_uses_what_is_cached_and_names_what_is_not(fetched: Fetched, tmp_path: Path) -> None:
    before = len(fetched.hub.requests)
    cached, missing, data = answers(
        environment(fetched.hub.url, fetched.home, HF_HUB_OFFLINE="1"),
        ["quantize", "org/tiny@v1", str(tmp_path / "fp8"), "--dry-run"],
        ["quantize", "org/absent", str(tmp_path / "absent")],
        ["data", "org/texts"],
    )
    assert cached.code == 0, cached
    assert "not in the hub's cache: org/absent" in missing.message
    assert "offline mode is on" in missing.message and "HF_HUB_OFFLINE" in missing.message
    assert "OfflineModeIsEnabled" in data.message and "--data a .txt or .jsonl file" in data.message
    assert len(fetched.hub.requests) == before
    assert not list(tmp_path.iterdir())


def test_nobody_answers(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound and not listening: every connection is refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        (answer,) = answers(
            environment(url, tmp_path / "home"), ["quantize", "org/tiny", str(tmp_path / "out" / "fp8")]
        )
    assert "the hub cannot be reached: org/tiny" in answer.message
    assert url in answer.message and "refused" in answer.message
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def refused(hub: Hub, source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Answer], Path]:
    """What a process with an empty cache got for each of many sources, and the folder where it wrote."""
    folder = tmp_path_factory.mktemp("refused")
    files = files_of(source)
    index = json.loads(files["model.safetensors.index.json"])
    evil = {**index, "weight_map": dict.fromkeys(index["weight_map"], "../evil.safetensors")}
    hub.add("models", "org/look", files)
    hub.add("models", "org/gated", files)
    hub.gated.add("org/gated")
    hub.add("models", "org/pickles", {"pytorch_model.bin": b"a pickle"})
    hub.add("models", "org/partial", {name: data for name, data in files.items() if "00002-of" not in name})
    hub.add("models", "org/evil", files | {"model.safetensors.index.json": json.dumps(evil).encode()})
    hub.add("models", "org/climber", files | {"../../../climbed.json": b"{}"})
    text = [{"text": None, "title": "no text"}, {"text": "one", "title": "first"}, {"text": "two", "title": "second"}]
    lines = "".join(json.dumps(row) + "\n" for row in text).encode()
    hub.add("datasets", "org/texts", {"train.jsonl": b'{"text": "trained", "title": "t"}\n', "test.jsonl": lines})
    hub.add("datasets", "org/numbers", {"train.jsonl": b'{"n": 1}\n'})
    models = ("absent", "in valid", "look@nowhere", "gated", "pickles", "partial", "evil", "climber")
    jobs = {f"org/{name}": ["quantize", f"org/{name}", str(folder / "out")] for name in models}
    hub.add("models", "org/llama", files | {"config.json": b'{"model_type": "llama"}'})
    hub.add("models", "org/taken", files)
    jobs["org/llama"] = ["quantize", "org/llama", str(folder / "out")]
    (folder / "taken").mkdir()
    jobs["org/taken"] = ["quantize", "org/taken", str(folder / "taken")]
    jobs |= {f"inspect org/{name}": ["inspect", f"org/{name}", "--json"] for name in ("look", "partial", "pickles")}
    jobs |= {f"data {s}": ["data", s] for s in ("org/texts", "org/texts:train", "org/texts:dev", "org/numbers", "a/b")}
    found = answers(environment(hub.url, folder / "home"), *jobs.values())
    return dict(zip(jobs, found, strict=True)), folder


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("org/absent", ("no such model on the hub: org/absent", "http://127.0.0.1", "hf auth login")),
        ("org/in valid", ("the hub did not give it: org/in valid", "HFValidationError")),
        ("org/look@nowhere", ("org/look has no revision 'nowhere' on the hub",)),
        ("org/gated", ("org/gated is gated", "ask for access at http://127.0.0.1")),
        ("org/pickles", ("org/pickles on the hub is not a checkpoint", "expected: config.json")),
        ("org/partial", ("model-00002-of-00002.safetensors is missing",)),
        ("org/evil", ("'../evil.safetensors' leads out of the folder", "do not trust this checkpoint")),
        ("org/climber", ("the hub did not give it: org/climber", "climbed.json")),
        ("inspect org/pickles", ("org/pickles on the hub is not a checkpoint", "expected: config.json")),
    ],
)
def test_what_the_hub_does_not_give(refused: tuple[dict[str, Answer], Path], name: str, texts: tuple[str, ...]) -> None:
    found, folder = refused
    for text in texts:
        assert text in found[name].message
    assert not (folder / "out").exists()
    assert not [file for file in folder.rglob("*") if file.name == "climbed.json"]


@pytest.mark.parametrize(
    "source", ["~nobody-of-that-name/x/y", "x" * 5000, "/absent/x", "../absent", "a/b/c", "absent"]
)
def test_names_that_cannot_be_on_the_hub(source: str) -> None:
    with pytest.raises(UserError, match="no such folder"):
        resolve_source(source)


@pytest.mark.parametrize(("name", "text"), [("llama", "unknown model_type 'llama'"), ("taken", "exists")])
def test_what_the_config_can_refuse_is_refused_before_the_weights_are_fetched(
    refused: tuple[dict[str, Answer], Path], hub: Hub, name: str, text: str
) -> None:
    """A foreign family, and a destination that holds something else: a few kilobytes each, not 160 GB."""
    found, _ = refused
    assert text in found[f"org/{name}"].message
    resolved = {r.rsplit("/", 1)[1] for r in hub.requests if f"/org/{name}/resolve/" in r}
    assert resolved == {"config.json"}


def test_inspect_reads_the_config_alone(refused: tuple[dict[str, Answer], Path], hub: Hub) -> None:
    found, _ = refused
    assert json.loads(found["inspect org/look"].out)["metadata"] == "config"
    resolved = {r.rsplit("/", 1)[1] for r in hub.requests if "/org/look/resolve/" in r}
    assert resolved == {"config.json"}


def test_inspect_does_not_depend_on_what_the_cache_holds(refused: tuple[dict[str, Answer], Path]) -> None:
    found, _ = refused  # a shard of it is missing, after quantize has fetched the rest and the index
    assert json.loads(found["inspect org/partial"].out)["metadata"] == "config"


def test_a_data_set_of_the_hub(refused: tuple[dict[str, Answer], Path]) -> None:
    found, _ = refused
    assert json.loads(found["data org/texts"].out) == [["org/texts/1", "texts", "one"], ["org/texts/2", "texts", "two"]]
    assert json.loads(found["data org/texts:train"].out) == [["org/texts/0", "texts", "trained"]]


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("data org/texts:dev", ("Bad split: dev", "'train', 'test'")),
        ("data org/numbers", ("the data set has no text", "found: n")),
        ("data a/b", ("DatasetNotFoundError", "'a/b'")),
    ],
)
def test_data_sets_without_texts(refused: tuple[dict[str, Answer], Path], name: str, texts: tuple[str, ...]) -> None:
    found, _ = refused
    for text in texts:
        assert text in found[name].message
