"""The visualization command: its files, its progress, its exit codes; and the script of examples."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from hjepa_dist_metrics.reference import visualize
from hjepa_dist_metrics.reference.main import main as train

ROOT = Path(__file__).resolve().parents[2]
MASKS = {"multi_block", "strategy", "image", "regions", "compared", "statistics"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output directory of a run of six steps, with a checkpoint."""
    output = tmp_path_factory.mktemp("run")
    arguments = ["--config", str(ROOT / "configs/default.yaml"), "--output_dir", str(output)]
    assert train([*arguments, "--training.max_steps", "6", "--logging.log_frequency", "1"]) == 0
    return output


def call(output: Path, *arguments: str) -> int:
    return visualize.main([*arguments, "--output-dir", str(output), "--dpi", "60"])


def files(output: Path) -> set[str]:
    return {path.name for path in output.iterdir()}


def test_masks_need_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert call(tmp_path, "--visualize-masks", "--num-samples", "4") == 0
    assert files(tmp_path) == {f"masks_{name}.png" for name in MASKS} | {"masks_growing.gif"}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"[1/7] {tmp_path / 'masks_multi_block.png'}"
    assert len(lines) == 7


def test_everything_of_a_checkpoint_and_its_logs(run: Path, tmp_path: Path):
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(tmp_path / "look.png")
    found = sorted((run / "checkpoints").glob("*/*.pt"))[-1]
    arguments = [
        "--checkpoint",
        str(found.parent),
        "--image",
        str(tmp_path / "look.png"),
        "--log-dir",
        str(run),
    ]
    assert call(tmp_path / "all", "--visualize-all", *arguments) == 0
    names = files(tmp_path / "all")
    wanted = {"predictions", "predictions_by_level", "features", "neighbours", "embeddings"}
    wanted |= {f"attention_{name}" for name in ("maps", "heads", "rollout", "depth", "patch")}
    wanted |= {f"training_{name}" for name in ("curves", "levels", "collapse", "momentum")}
    assert {f"{name}.png" for name in wanted | {f"masks_{name}" for name in MASKS}} <= names
    for name in names:
        with Image.open(tmp_path / "all" / name) as image:
            assert np.asarray(image.convert("L")).std() > 1, name


def test_one_kind_at_a_time(run: Path, tmp_path: Path):
    found = str(sorted((run / "checkpoints").glob("*/*.pt"))[-1])
    assert call(tmp_path / "a", "--checkpoint", found, "--visualize-attention") == 0
    assert {name.split("_")[0] for name in files(tmp_path / "a")} == {"attention"}
    assert call(tmp_path / "t", "--visualize-training", "--log-dir", str(run)) == 0
    assert {name.split("_")[0] for name in files(tmp_path / "t")} == {"training"}


def test_one_failure_stops_nothing_but_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def fail(save_path: Path, dpi: int) -> None:
        raise ValueError("out of ink")

    def good(save_path: Path, dpi: int) -> None:
        save_path.parent.mkdir(exist_ok=True)
        Figure().savefig(save_path, dpi=dpi)

    assert visualize.draw([("a.png", fail), ("b.png", good)], tmp_path, 60) == 1
    assert files(tmp_path) == {"b.png"}
    said = capsys.readouterr()
    assert "[1/2]" in said.err
    assert "a.png failed: ValueError: out of ink" in said.err
    assert "1 of 2 figures failed" in said.err
    assert "[2/2]" in said.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to draw: ask for --visualize-masks"),
        (["--visualize-attention"], "need --checkpoint"),
        (["--visualize-training"], "needs --log-dir"),
        (["--visualize-training", "--log-dir", "absent"], "there is no file or directory absent"),
        (["--visualize-predictions", "--checkpoint", "absent.pt"], "no checkpoint at absent.pt"),
        (["--visualize-masks", "--num-samples", "0"], "--num-samples is 0"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, capsys, arguments: list[str], message: str):
    assert call(tmp_path, *arguments) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_a_checkpoint_of_another_model_is_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = str(sorted((run / "checkpoints").glob("*/*.pt"))[-1])
    config = tmp_path / "other.yaml"
    config.write_text("model:\n  embed_dim: 32\n  predictor_dim: 32\n")
    arguments = ["--visualize-attention", "--checkpoint", found, "--config", str(config)]
    assert call(tmp_path, *arguments) == 2
    assert "does not fit the model of the configuration" in capsys.readouterr().err
    assert call(tmp_path, "--visualize-attention", "--checkpoint", found, "--image", "absent.png") == 2
    assert "there is no image absent.png" in capsys.readouterr().err


def test_the_examples_write_fifteen_figures_and_more(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["visualization_example.py", str(tmp_path)])
    draw = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path, dpi, **more: draw(self, path, dpi=50, **more))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "launch/visualization_example.py"), run_name="__main__")
    assert ended.value.code == 0
    assert len(files(tmp_path)) >= 15
    assert capsys.readouterr().out.splitlines()[-1] == f"{len(files(tmp_path))} figures in {tmp_path}"
