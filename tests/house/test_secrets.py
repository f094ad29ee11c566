"""No token of the environment reaches anything that is written or printed; nothing of the data is run."""

import ast
import re
from pathlib import Path

import pytest
from commands import execute, python
from paths import ROOT
from trainer_shards import make_model, make_trainable

SECRETS = {
    "HF_TOKEN": "hf_QkLwSecretSecretSecretSecret1234567",
    "HUGGING_FACE_HUB_TOKEN": "hf_OtherSecretSecretSecretSecret123456",
    "WANDB_API_KEY": "0123secret456789abcdef0123456789abcdef01",
    "AWS_SECRET_ACCESS_KEY": "wJalrSecretSecretEXAMPLEKEY",
}
# The hub is out of reach: a port that nobody listens on.
HUB = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_TELEMETRY": 1}


def output_of(module: str, *arguments: object, code: int = 0) -> str:
    done = python("-m", module, *arguments, code=code, **SECRETS, **HUB)
    return done.stdout + done.stderr


def assert_no_secret(what: str, content: bytes) -> None:
    for name, secret in SECRETS.items():
        assert secret.encode() not in content, f"{name} stands in {what}"


@pytest.mark.slow
def test_no_secret_in_logs_tables_manifests_or_configurations(tmp_path: Path) -> None:
    """Sample, download (refused), build, verify, training, resume: all their files and all they print."""
    data, model = tmp_path / "data", make_model(tmp_path / "model")
    make_trainable(tmp_path / "shards", {"text": 6})
    said = output_of("pipelines", "sample", "--data", data)
    folders = ["--data", data, "--work", tmp_path / "work", "--out", tmp_path / "built"]
    only = ["--source", "pubmedqa"]
    said += output_of("pipelines", "build", *folders, "--tokenizer", data / "tokenizer", *only)
    said += output_of("shards", "verify", tmp_path / "built", "--leaks")
    refused = output_of("pipelines", "download", "--data", tmp_path / "hub", *only, code=2)
    assert "cannot be fetched" in refused
    refused += output_of("janus", "info", "some/model", code=2)
    assert "some/model" in refused
    assert "Traceback" not in refused
    run = ["--task", "text", "--model", model, "--shards", tmp_path / "shards", "--out", tmp_path / "run"]
    said += output_of("trainer", "train", *run, "--steps", 2, "--batch-size", 2, "--warmup-steps", 0)
    assert_no_secret("what was printed", (said + refused).encode())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"manifest.json", "config.yaml", "metrics.jsonl", "stage.json"} <= {path.name for path in files}
    for path in files:
        assert_no_secret(str(path), path.read_bytes())


FORBIDDEN = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
FORBIDDEN |= {"yaml.unsafe_load", "yaml.full_load", "np.load", "numpy.load", "torch.load"}
UNPICKLE = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


@pytest.mark.parametrize("package", ["janus", "shards", "pipelines", "trainer"])
def test_no_code_runs_or_unpickles_what_it_reads(package: str) -> None:
    """The one reader of pickles is `janus/checkpoint/torchfile.py`, which makes tensors of all it takes."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in FORBIDDEN, where
                switched_on = {k.arg for k in node.keywords if ast.unparse(k.value) == "True"}
                assert not switched_on & {"allow_pickle", "shell", "trust_remote_code"}, where
                if called == "yaml.load":
                    assert ast.unparse(node.args[1]) in ("yaml.BaseLoader", "yaml.SafeLoader"), where
            if isinstance(node, ast.Import | ast.ImportFrom) and path.name != "torchfile.py":
                names = [a.name for a in node.names] + [getattr(node, "module", "") or ""]
                assert not {name.split(".")[0] for name in names} & UNPICKLE, where


def test_every_dependency_is_pinned_and_an_audit_that_cannot_ask_says_so(tmp_path: Path) -> None:
    """What pyproject.toml names has one version for each Python; no answer is not taken for a good one."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert all("==" in line for line in lines if not line.startswith("#"))
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("\ndependencies = [")[2]
    quoted = re.findall(r'"([A-Za-z][\w-]*)[^"]*"', text.partition("[project.scripts]")[0])
    named = {name.lower().replace("_", "-") for name in quoted}
    assert "pip-audit" in named
    assert named <= pinned
    unreachable = tmp_path / "pip-audit"
    unreachable.write_text("#!/bin/sh\necho 'requests.exceptions.ConnectionError: osv.dev'; exit 1\n")
    unreachable.chmod(0o755)
    (line,) = execute(".ci/audit", unreachable, code=2).stderr.splitlines()
    assert line.startswith("audit: osv.dev cannot be reached")
