"""The wheel works away from the checkout: typed, with its configurations, in an environment of its own."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from hjepa_dist_metrics.version import __version__

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "hjepa_dist_metrics"


def python(interpreter: str | Path, *arguments: str, cwd: Path) -> str:
    run = subprocess.run(
        [str(interpreter), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
        # a developer's PYTHONPATH would put the checkout before the installed wheel
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert run.returncode == 0, f"{' '.join(arguments)}\n{run.stdout[-2000:]}\n{run.stderr[-4000:]}"
    return run.stdout.strip()


EXTRAS = {
    "bench",
    "clip",
    "figures",
    "huggingface",
    "lightning",
    "mlflow",
    "parquet",
    "system",
    "trackio",
    "train",
    "umap",
    "wandb",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    python(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT), cwd=out
    )
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the wheel in it, and this one's dependencies borrowed."""
    base = tmp_path_factory.mktemp("fresh")
    venv.create(base / "env", with_pip=False, symlinks=True)
    interpreter = base / "env/bin/python"
    site = Path(
        python(interpreter, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=base)
    )
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    python(sys.executable, *pip, "--target", str(site), str(wheel), cwd=base)
    borrowed = [entry for entry in sys.path if Path(entry).name in {"site-packages", "dist-packages"}]
    # Plain path lines: the borrowed folders' own .pth files, an editable install among them, stay unread.
    (site / "borrowed.pth").write_text("\n".join(borrowed))
    return interpreter


def packaged(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def tracked(folder: str) -> set[str]:
    """What the repository keeps in `folder`, from git where this is a clone, from the disk otherwise."""
    git = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True)
    if git.returncode == 0:
        return {name for name in git.stdout.splitlines() if (ROOT / name).exists()}
    return {p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob("*") if p.is_file()}


def test_every_source_file_and_configuration_travels(wheel: Path):
    inside = packaged(wheel)
    assert f"{PACKAGE}/py.typed" in inside
    configurations = tracked("configs")
    assert "configs/accelerate/cpu.yaml" in configurations
    assert {f"{PACKAGE}/{name}" for name in configurations} <= inside
    assert {name for name in tracked(PACKAGE) if name.endswith((".py", ".c", ".js", ".css"))} <= inside


def test_nothing_else_travels(wheel: Path):
    tops = {name.split("/")[0] for name in packaged(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {PACKAGE}
    assert not [name for name in packaged(wheel) if "__pycache__" in name or name.endswith(".pyc")]


def test_version_licence_and_extras_are_in_the_metadata(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = archive.read(name).decode()
        assert any(n.endswith("licenses/LICENSE") for n in archive.namelist())
        assert any(n.endswith("uPlot-LICENSE.txt") and "licenses" in n for n in archive.namelist())
    assert "License-Expression: Apache-2.0" in metadata
    assert f"Version: {__version__}" in metadata.splitlines()
    extras = {line.split(": ")[1] for line in metadata.splitlines() if line.startswith("Provides-Extra: ")}
    assert extras == {*EXTRAS, "all", "dev"}


def test_it_imports_away_from_the_checkout(fresh: Path, tmp_path: Path):
    code = f"import {PACKAGE}; print({PACKAGE}.__file__)"
    location = Path(python(fresh, "-W", "error", "-c", code, cwd=tmp_path)).resolve()
    assert fresh.parent.parent.resolve() in location.parents
    assert ROOT not in location.parents


def test_its_metrics_run_away_from_the_checkout(fresh: Path, tmp_path: Path):
    code = f"from {PACKAGE}.values import Scalar; print(float(Scalar(2.5)))"
    assert python(fresh, "-c", code, cwd=tmp_path) == "2.5"


def test_its_configurations_are_reachable_as_resources(fresh: Path, tmp_path: Path):
    code = f"""
from importlib.resources import files
import yaml
config = files("{PACKAGE}") / "configs" / "accelerate" / "cpu.yaml"
print(yaml.safe_load(config.read_text())["num_processes"])
"""
    assert python(fresh, "-c", code, cwd=tmp_path) == "2"


def test_the_wheel_brings_the_command(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [entry for entry in archive.namelist() if entry.endswith("entry_points.txt")]
        text = archive.read(name).decode()
    assert text.split() == ["[console_scripts]", "hjepa-metrics", "=", "hjepa_dist_metrics.cli:main"]
