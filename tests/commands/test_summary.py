"""What the terminal shows of a run: the verdict of its judge first, in 80 columns, cut nowhere."""

import io
import math
import subprocess
import sys

import pytest
import torch

from hjepa_dist_metrics import MetricsLogger, TrainingMonitor
from hjepa_dist_metrics.commands.runs import load_runs
from hjepa_dist_metrics.commands.terminal import say, wrap
from hjepa_dist_metrics.commands.watch import watch
from tests.helpers.cli import run, write_run


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("use_tensorboard", [True, False])
def test_summary_of_a_healthy_run(tmp_path, capsys, use_tensorboard):
    write_run(tmp_path, use_tensorboard=use_tensorboard)
    code, out, _ = run(capsys, "summary", str(tmp_path))
    assert code == 0
    assert out.splitlines()[2] == "healthy"
    (line,) = [line for line in out.splitlines() if line.startswith("effective rank")]
    assert line.split() == ["effective", "rank", "30", "30", "dimensions", "above", "16"]
    assert "own/tag" not in out
    assert "own/tag" in run(capsys, "summary", str(tmp_path), "--all")[1]
    assert "\x1b" not in out


LEAK = "failing: mask_leak: the context sees patches that it has to predict since step 3"


@pytest.mark.parametrize(
    ("options", "first", "said"),
    [
        ({"leak": range(3, 20)}, LEAK, "try: take the targets' patches out of the context"),
        ({"loss": lambda step: math.nan}, "failing: nonfinite: NaN or infinite values since step 0", "try:"),
    ],
)
def test_summary_of_a_failing_run_opens_with_what_is_wrong_and_exits_with_one(
    tmp_path, capsys, options, first, said
):
    write_run(tmp_path, steps=20, **options)
    code, out, _ = run(capsys, "summary", str(tmp_path))
    assert code == 1
    assert out.splitlines()[2] == first
    assert said in out
    assert max(map(len, out.splitlines())) <= 80


def test_summary_names_findings_that_have_ended(tmp_path, capsys):
    write_run(tmp_path, steps=20, leak=range(2, 10))
    code, out, _ = run(capsys, "summary", str(tmp_path))
    assert code == 0
    assert out.splitlines()[2:4] == [
        "healthy",
        "  ended: mask_leak of step 7: the context sees patches that it has to predict",
    ]


@pytest.mark.parametrize("use_tensorboard", [True, False])
def test_summary_comes_to_the_verdict_of_the_run_itself(tmp_path, capsys, use_tensorboard):
    model = torch.nn.Linear(4, 24)
    config = {
        "log_dir": str(tmp_path),
        "log_frequency": 2,
        "cadence": {"representations": 2},
        "sync": "inline",
    }
    generator = torch.Generator().manual_seed(0)
    with TrainingMonitor(model, torch.optim.SGD(model.parameters(), lr=0.1), config) as monitor:
        for step in range(60):
            spread = 1.0 if step < 30 else 0.8 ** (step - 30)
            drawn = 1.0 + spread * torch.randn(8, 5, 24, generator=generator)
            monitor.step(samples=8, losses=0.5, features=drawn)
        live = monitor.health()
    where = tmp_path if use_tensorboard else tmp_path / "metrics"
    code, out, _ = run(capsys, "summary", str(where))
    assert (code, live.verdict, live.findings[0].name) == (1, "failing", "point_collapse")
    since = f"failing: point_collapse: {live.findings[0].title} since step {live.findings[0].since}"
    assert str(live).startswith(since)
    assert out.splitlines()[2] == since


def test_all_lines_fit_80_columns_and_lose_no_word(tmp_path, capsys):
    write_run(tmp_path, steps=20, leak=range(3, 20))
    out = run(capsys, "summary", str(tmp_path), "--all")[1]
    assert max(map(len, out.splitlines())) <= 80
    long = "  try: " + " ".join(f"word{i}" for i in range(60)) + " " + 90 * "x"
    wrapped = wrap([long])
    assert " ".join("\n".join(wrapped).split()) == " ".join(long.split())
    assert all(len(line) <= 80 or line.strip() == 90 * "x" for line in wrapped)
    assert all(line.startswith("      ") for line in wrapped[1:])


def test_verdicts_are_coloured_on_a_terminal_alone(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    shown = Terminal()
    say("failing: a\x1b[2J\nrun, step 3: healthy; loss 1\n  unit  healthy", shown)
    assert shown.getvalue().splitlines() == [
        "\x1b[1;31mfailing\x1b[0m: a\\x1b[2J",
        "run, step 3: \x1b[32mhealthy\x1b[0m; loss 1",
        "  unit  healthy",
    ]
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    say("failing: a", plain)
    assert plain.getvalue() == "failing: a\n"


def grow(log_dir, rounds):
    """Return a function that writes ten more steps at each call, and ends with Ctrl-C."""
    calls = iter(rounds)

    def sleep(seconds):
        leak = next(calls, None)
        if leak is None:
            raise KeyboardInterrupt
        start = load_runs(log_dir)[0].last_step + 1
        with MetricsLogger("run", log_dir, resume=True, start_step=start) as logger:
            for step in range(start, start + 10):
                logger.log_metrics({"loss/total": 0.1, "masking/context_target_overlap": 0.3 * leak}, step)

    return sleep


def test_watch_writes_a_line_for_each_new_step_into_a_pipe(tmp_path):
    write_run(tmp_path)
    stream = io.StringIO()
    healthy = watch(lambda: load_runs(tmp_path)[0], 1.0, stream, grow(tmp_path, [False, True]))
    lines = stream.getvalue().splitlines()
    assert [line.split(": ")[0] for line in lines] == ["run, step 9", "run, step 19", "run, step 29"]
    assert [line.split(": ")[1].split(";")[0] for line in lines] == ["healthy", "healthy", "failing"]
    assert not healthy


def test_watch_shows_the_summary_anew_on_a_terminal(tmp_path, monkeypatch):
    write_run(tmp_path)
    stream = Terminal()
    monkeypatch.setenv("NO_COLOR", "1")
    assert watch(lambda: load_runs(tmp_path)[0], 1.0, stream, grow(tmp_path, [False]))
    pages = stream.getvalue().split("\x1b[2J\x1b[H")[1:]
    assert [page.splitlines()[0] for page in pages] == [
        "Run run: 10 steps, 7 tags",
        "Run run: 20 steps, 7 tags",
    ]
    assert "Ctrl-C ends this" in pages[-1]


def test_the_terminal_commands_judge_without_loading_torch(tmp_path):
    write_run(tmp_path)
    code = (
        "import sys; from hjepa_dist_metrics.cli import main;"
        f"main(['summary', {str(tmp_path)!r}]); main(['report', {str(tmp_path)!r}, '--output', sys.argv[1]]);"
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "report.html")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert finished.stdout.splitlines()[-1] == "False"
