"""Take the pictures of the README and store the notebook's outputs, all from real runs.

python launch/screenshots.py [NAME ...] [--logs DIR]: health, report, figures, notebook; by default all of
them, of a demo that is trained for it or has left its logs in DIR. Needs Chromium, and the extras `train`,
`figures` and `dev`. Pictures go to launch/images/, each below 100 kB.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image as Pictures

HERE = Path(__file__).resolve().parent
IMAGES, ROOT = HERE / "images", HERE.parent
MOST_BYTES = 100_000
NAMES = ("health", "report", "figures", "notebook")
GALLERY = (
    "masking/geometry_analysis",
    "patches/similarity_heatmap",
    "embeddings/pca_pred_vs_target",
)


def train(folder: Path) -> Path:
    """Train the demo on two ranks into a folder of logs."""
    logs = folder / "logs"
    command = ["launch/torchrun.py", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    more = ["launch/train.py", "--config", "configs/default.yaml", "--logging.log_dir", str(logs)]
    subprocess.run([sys.executable, *command, *more], cwd=ROOT, check=True)
    return logs


@contextlib.contextmanager
def tensorboard(logs: Path) -> Iterator[str]:
    """Serve the logs and yield the server's address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["-m", "hjepa_dist_metrics.cli", "tensorboard", str(logs), "--host", "127.0.0.1"]
    server = subprocess.Popen([sys.executable, *command, "--port", str(port), "--no-browser"], cwd=ROOT)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.2)
        time.sleep(5)  # until the logs are read
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def photograph(url: str, name: str, size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    """Store what a browser of `size` shows of a page within `box` (left, top, right, bottom)."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("screenshots need Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--virtual-time-budget=60000",
        ]
        place = [f"--screenshot={shot}", f"--window-size={size[0]},{size[1]}", "--virtual-time-budget=60000"]
        subprocess.run([browser, *flags, *place, url], check=True, capture_output=True, timeout=120)
        store(Pictures.open(shot).crop(box), name)


def store(picture: Any, name: str) -> None:
    """Write a PNG with as many colours as fit into 100 kB."""
    IMAGES.mkdir(exist_ok=True)
    for colours in (256, 128, 64, 32, 16):
        data = small_png(picture, colours)
        if len(data) < MOST_BYTES:
            (IMAGES / f"{name}.png").write_bytes(data)
            print(f"{name}: {picture.width}x{picture.height}, {len(data) / 1000:.0f} kB, {colours} colours")
            return
    raise SystemExit(f"{name} does not fit into {MOST_BYTES} bytes")


def small_png(picture: Any, colours: int) -> bytes:
    """Return a PNG of a palette."""
    buffer = io.BytesIO()
    method = Pictures.Quantize.MAXCOVERAGE  # keeps the few pixels of a line's colour
    drawn = picture.convert("RGB").quantize(colours, method=method, dither=Pictures.Dither.NONE)
    drawn.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def figures(logs: Path) -> None:
    """Store figures of the run side by side."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (directory,) = (path for path in (logs / "tensorboard").iterdir() if path.is_dir())
    board = EventAccumulator(str(directory)).Reload()
    files = [io.BytesIO(board.Images(tag)[-1].encoded_image_string) for tag in GALLERY]
    drawn = [Pictures.open(file).convert("RGB") for file in files]
    drawn = [p.resize((480, round(480 * p.height / p.width)), Pictures.Resampling.LANCZOS) for p in drawn]
    height = max(p.height for p in drawn)
    page = Pictures.new("RGB", (480 * len(drawn), height), "white")
    for place, picture in enumerate(drawn):
        page.paste(picture, (480 * place, (height - picture.height) // 2))
    store(page, "figures")


def report(logs: Path, folder: Path) -> None:
    """Store the top of the run's report."""
    page = folder / "report.html"
    command = ["-m", "hjepa_dist_metrics.cli", "report", str(logs), "--output", str(page)]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    photograph(page.as_uri(), "report", (1200, 1000), (0, 0, 1200, 900))


def notebook() -> None:
    """Run launch/demo.ipynb and store it with its outputs, their pictures in 64 colours."""
    import base64

    import nbformat
    from nbclient import NotebookClient

    path = HERE / "demo.ipynb"
    book = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(book, timeout=600, resources={"metadata": {"path": folder}}).execute()
    for cell in book.cells:
        cell.get("metadata", {}).pop("execution", None)
        kept = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
        for output in kept:
            data = output.get("data", {})
            if "image/png" in data:
                picture = Pictures.open(io.BytesIO(base64.b64decode(data["image/png"])))
                data["image/png"] = base64.b64encode(small_png(picture, 64)).decode()
        if "outputs" in cell:
            cell["outputs"] = kept
    nbformat.write(book, path)  # type: ignore[no-untyped-call]
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def main(names: list[str], given: Path | None) -> None:
    """Take the pictures that are named, or all."""
    wanted = set(names) or set(NAMES)
    if "notebook" in wanted:
        notebook()
    if wanted == {"notebook"}:
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        logs = train(folder) if given is None else given
        if "figures" in wanted:
            figures(logs)
        if "report" in wanted:
            report(logs, folder)
        if "health" in wanted:
            with tensorboard(logs) as server:
                photograph(f"{server}/#custom_scalars", "health", (1480, 1120), (320, 66, 1480, 1040))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--logs", type=Path)
    options = parser.parse_args()
    main(options.names, options.logs)
