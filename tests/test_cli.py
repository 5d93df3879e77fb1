"""The command as a user types it: real processes, real files, real signals."""

from __future__ import annotations

import json
import math
import os
import pty
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
import torch
from PIL import Image

from registry.cli import main
from registry.cli.again import going_on, typed
from registry.cli.group import reason
from registry.core.errors import Interrupted
from registry.files.formats import load_network, save_network
from tests.conftest import environment, error_line, tiny_network

Cli = Callable[..., subprocess.CompletedProcess[str]]
Write = Callable[..., Path]


def only_run(folder: Path) -> Path:
    (run,) = folder.iterdir()
    return run


def test_a_run_leaves_networks_pictures_and_numbers(cli: Cli, recipe_file: Write, tmp_path: Path) -> None:
    append = 'metrics = ["frechet", "sliced_wasserstein"]\nreference = "digits"\n'
    done = cli("--recipe", recipe_file(append=append))
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "runs")
    assert run.name == "00000-short"
    names = {p.name for p in run.iterdir()}
    assert names >= {
        "recipe.toml", "log.txt", "stats.jsonl", "fakes_init.png", "fakes_000000.png", "curves.png", "quality.txt", "quality.json",
        "metric-frechet.jsonl", "metric-sliced_wasserstein.jsonl", "network-snapshot-1.000000-000000.pkl", "training-state-000000.pt",
    }  # fmt: skip
    assert not [n for n in names if n.startswith(".")]  # no temporary file is left
    stats = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert [round(s["Progress/kimg"]["mean"], 3) for s in stats] == [0.016, 0.032, 0.048]
    assert set(stats[0]["Loss/generator"]) == {"num", "mean", "std"}
    assert "timestamp" in stats[0]
    metric = [json.loads(line) for line in (run / "metric-frechet.jsonl").read_text().splitlines()]
    assert [round(m["kimg"], 3) for m in metric] == [0.016, 0.032, 0.048]
    assert set(metric[0]["results"]) == {"frechet", "classes"}
    assert "kimg 0.0" in done.stdout
    assert "img/s" in done.stdout
    assert "┃" in done.stdout  # the table
    quality = json.loads((run / "quality.json").read_text())
    assert [(r["name"], r["evaluations"]) for r in quality["rows"]][:2] == [("generator", 1), ("teacher", 5)]
    assert all(len(v) == 2 for r in quality["rows"] for v in r["values"].values())
    assert Image.open(run / "fakes_000000.png").size[0] >= 480
    net, facts = load_network(run / "network-snapshot-1.000000-000000.pkl", "generator")
    assert (facts.D, facts.sigma_init, facts.nimg) == (128.0, 2.5, 48)
    assert net(torch.zeros(1, 1, 8, 8), 2.5).shape == (1, 1, 8, 8)
    resolved = tomllib.loads((run / "recipe.toml").read_text())
    assert resolved["train"]["betas"] == [0.0, 0.999]  # defaults are written out
    again = cli("--recipe", run / "recipe.toml", "--outdir", tmp_path / "again")
    assert again.returncode == 0, again.stderr
    assert (only_run(tmp_path / "again") / "stats.jsonl").read_text().split("Timing")[0] == (run / "stats.jsonl").read_text().split(
        "Timing"
    )[0]


def test_saved_teacher_rows_are_used_until_fresh_ones_are_requested(cli: Cli, recipe_file: Write, tmp_path: Path) -> None:
    path = recipe_file(append='metrics = ["sliced_wasserstein"]\nreference = "digits"\n')
    shelf = tmp_path / "teacher.quality.json"
    assert "measuring the teacher: 3 Heun steps" in cli("--recipe", path).stdout
    kept = json.loads(shelf.read_text())
    assert kept[0]["measured"]["steps"] == 3
    kept[0]["row"]["values"]["sliced_w2"] = [98765.0, 98765.0]
    shelf.write_text(json.dumps(kept))
    assert "98765" not in cli("--recipe", path).stdout  # they have changed since they were written
    del kept[0]["digest"]
    shelf.write_text(json.dumps(kept))
    used = cli("--recipe", path).stdout
    assert "measuring the teacher" not in used
    assert "98765" in used
    for values in (
        {"sliced_w2": [98765.0, math.nan]},
        {"sliced_w2": [98765.0, math.inf]},
        {"sliced_w2": [98765.0] * 2, "fid": [1.0] * 2},
    ):
        kept[0]["row"]["values"] = values
        shelf.write_text(json.dumps(kept))
        assert "measuring the teacher" in cli("--recipe", path).stdout, values
    assert (
        "measuring the teacher" in cli("--recipe", path, "--set", "eval.samples=16").stdout
    )  # measured differently: not the same row
    fresh = cli("--recipe", path, "--fresh-teacher").stdout
    assert "measuring the teacher" in fresh
    assert "98765" not in fresh


def test_dry_run_writes_nothing_and_needs_no_torch(cli: Cli, recipe_file: Write, tmp_path: Path) -> None:
    done = cli("--recipe", recipe_file(), "--dry-run", "--seed", "7")
    assert done.returncode == 0, done.stderr
    assert tomllib.loads(done.stdout)["train"]["seed"] == 7
    assert "# 6 iterations of 8 images" in done.stdout
    assert "loss 'ipfm' of plugin ipfm" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_a_measured_row_of_the_teacher_survives_an_interruption_of_the_next(recipe_file: Write, tmp_path: Path) -> None:
    """The second row would take hours."""
    shelf = tmp_path / "teacher.quality.json"
    recipe = recipe_file(append='metrics = ["sliced_wasserstein"]\nreference = "digits"\n')
    words = ["--recipe", str(recipe), "--set", "eval.samples=8", "--set", "eval.teacher_steps=[2, 10000]"]
    run = subprocess.Popen([sys.executable, "-m", "registry.cli", *words], cwd=tmp_path, env=environment(), stderr=subprocess.PIPE)
    while not shelf.exists():
        assert run.poll() is None, run.communicate()
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    assert b"interrupted" in run.communicate(timeout=180)[1] and run.returncode == 143
    assert [entry["row"]["evaluations"] for entry in json.loads(shelf.read_text())] == [3]


def test_checking_and_listing_import_no_more_than_they_need(recipe_file: Write) -> None:
    for args, spared in (
        (["check", str(recipe_file()), "quickstart", "toy_2d"], {"torch", "rich"}),
        (["plugins"], {"torch"}),
        (["--recipe", "quickstart", "--dry-run"], {"torch", "rich"}),
        (["--help"], {"torch", "rich", "pydantic"}),
        (["generate", "--help"], {"torch", "rich", "pydantic"}),
    ):
        code = f"import sys; sys.argv = ['distill', *{args!r}]\nfrom registry.cli import main\ntry: main()\nexcept SystemExit as e: assert not e.code\nassert not {spared!r} & set(sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)
        assert done.returncode == 0, done.stderr


def test_a_network_is_opened_without_torchs_compiler(tmp_path: Path) -> None:
    """Arithmetic on the meta device imports it, for a second and more."""
    net = tiny_network(model_channels=8, channel_mult=[1, 2])
    save_network(tmp_path / "net.pkl", "denoiser", net, {"D": math.inf, "sigma_data": 0.5})
    code = (
        "import sys; from registry.files.formats import load_network; load_network(sys.argv[1]); "
        "assert 'torch' in sys.modules and not {'torch._dynamo', 'sympy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "net.pkl"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_check_reports_every_recipe(cli: Cli, recipe_file: Write) -> None:
    bad = recipe_file(("batch = 8", "batch = 0"), name="bad.toml")
    done = cli("check", recipe_file(), bad)
    assert done.returncode == 1
    assert "short.toml: ok" in done.stdout
    assert done.stderr.splitlines() == [
        f"{bad}: [train] batch = 0: must be greater than or equal to 1",
        "distill: 1 of 2 recipes cannot run",
    ]


BAD = {
    "unknown component": (["--set", "loss.use=ipmf"], "no loss is called 'ipmf' (did you mean 'ipfm'?)"),
    "unknown loss flag": (["--loss", "simd"], "no loss is called 'simd' (did you mean 'sid'?)"),
    "wrong type": (["--set", "train.lr=fast"], "[train] lr = 'fast': must be a valid number"),
    "missing file": (["--set", "teacher.source=nowhere/x.pt"], "[teacher] source = 'nowhere/x.pt': no such file"),
    "other D": (["--set", "noise.D=64"], "[noise] use = 'electrostatic': has D = 64, but the teacher has D = 128"),
    "teacher of another D": (["--set", "teacher.D=2048"], "teacher.pt was trained with D = 128"),
    "sid at finite D": (["--loss", "sid"], "[loss] use = 'sid': is defined for diffusion (D = inf), but the teacher has D = 128; use ipfm, or a teacher that sid serves"),
    "edm with finite D": (["--set", "teacher.use=edm"], "[teacher] use = 'edm': is for diffusion teachers (D = inf), but its file has D = 128; use analytic or pfgmpp"),
    "D ≤ 0": (["--set", "noise.D=0"], "[noise] D = 0: must be greater than 0"),
    "batch not divisible": (["--set", "train.batch_gpu=3"], "[train] batch_gpu = 3: must divide batch = 8"),
    "no such metric": (["--set", 'eval.metrics=["fidd"]'], "no metric is called 'fidd' (did you mean 'fid'?)"),
    "no reference": (["--set", 'eval.metrics=["frechet"]'], "does not include its images; give a data set"),
    "reference missing": (["--set", 'eval.metrics=["frechet"]', "--set", "eval.reference=nowhere"], "= 'nowhere': no such data set"),
    "device": (["--set", "train.device=tpu"], "[train] device = 'tpu': must be auto, cpu, cuda, cuda:N or mps"),
    "resume from nothing": (["--resume", "nowhere"], "--resume nowhere: no such file or folder"),
    "resume from a teacher": (["--resume", "{teacher}"], "is a denoiser, expected a training state"),
    "recipe of another kind": (["--recipe", "teachers/digits_d128"], "this recipe is run with: distill pretrain --recipe"),
    "no Heun steps": (["--set", "eval.teacher_steps=[0]"], "[eval] teacher_steps.0 = 0: must be greater than or equal to 1"),
    "beta above 1": (["--set", "train.betas=[0, 1.5]"], "[train] betas.1 = 1.5: must be less than 1"),
    "huge seed": (["--seed", "9223372036854775807"], "[train] seed = 9223372036854775807: must be less than 4294967296"),
    "levels that cannot be spaced": (["--set", "noise.rho=1e-308"], "[noise] rho = 1e-308: is too small"),
    "levels that are all the same": (["--set", "noise.rho=1e300"], "[noise] rho = 1e+300: is too large"),
    "reversed levels": (["--set", "noise.sigma_min=100"], "[noise] sigma_max = 80.0: must be above sigma_min = 100"),
    "misspelt behind --loss": (["--loss", "ipfm", "--set", "loss.alpa=1"], "[loss] alpa is unknown (did you mean 'alpha'?)"),
    "no list": (["--set", "eval.metrics=fid"], "[eval] metrics = 'fid': must be a list, written as [a, b]"),
    "neither a name nor a list": (
        ["--set", "generator.schedule=-1"], "[generator] schedule = -1: must be 'uniform' or 'karras', or a list, written as [a, b]",
    ),
    "half a pair": (["--set", "train.betas=[0]"], "[train] betas = [0]: has too few entries"),
    "hardly a tick": (["--set", "log.tick_kimg=1e-310"], "[log] tick_kimg = 1e-310: must be greater than or equal to 0.001"),
    "ticks without end": (["--set", f"log.state_ticks=1{'0' * 17}"], "must be less than or equal to 1000000000"),
    "less than an image": (["--set", "train.duration_kimg=0.0004"], "[train] duration_kimg = 0.0004: there is nothing to do without"),
    "eternal patience": (["--set", "train.timeout_minutes=1e308"], "must be less than or equal to 1000000"),
    "no such card": (["--set", f"train.device=cuda:{'9' * 20}"], "must be auto, cpu, cuda, cuda:N or mps"),
    "resume from an empty name": (["--resume", ""], "--resume is empty; leave it out, or give it a value"),
    "capitals": (["--set", 'eval.metrics=["FID"]'], "= ['FID']: no metric is called 'FID' (did you mean 'fid'?)"),
    "no such recipe": (["--recipe", "nowhere"], "nowhere: no such recipe"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(case: str, cli: Cli, recipe_file: Write, tmp_path: Path) -> None:
    args, wanted = BAD[case]
    args = [a.format(teacher=tmp_path / "teacher.pt") for a in args]
    assert wanted in error_line(cli("--recipe", recipe_file(), *args))
    assert not (tmp_path / "runs").exists()


FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "begins with b'': neither a network snapshot"),
    "text": (b"hello", "begins with b'hell': neither a network snapshot"),
    "pickle that calls": (b"\x80\x02cposix\nsystem\nX\x0c\x00\x00\x00touch canary\x85R.", "refers to posix.system"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_not_a_teacher(case: str, cli: Cli, recipe_file: Write, tmp_path: Path) -> None:
    content, wanted = FILES[case]
    path = recipe_file()
    (tmp_path / "teacher.pt").write_bytes(content)
    assert wanted in error_line(cli("--recipe", path))
    assert not list(tmp_path.rglob("canary"))


def test_a_teacher_whose_tensors_do_not_fit(cli: Cli, recipe_file: Write, tmp_path: Path) -> None:
    path = recipe_file()
    content = torch.load(tmp_path / "teacher.pt", weights_only=True)
    del content["weights"]["model.map_layer0.bias"]
    content["weights"]["model.map_layer1.bias"] = torch.zeros(3)
    torch.save(content | {"format": "distill/1"}, tmp_path / "teacher.pt")  # the mark of files that have no seal
    message = error_line(cli("--recipe", path))
    assert "missing model.map_layer0.bias; model.map_layer1.bias is [3], not [32] (2 in all)" in message


def test_outdir_that_cannot_be_written(cli: Cli, recipe_file: Write, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert f"{tmp_path / 'file'} is a file, not a folder" in error_line(
        cli("--recipe", recipe_file(), "--outdir", tmp_path / "file" / "x")
    )
    assert "cannot be written" in error_line(cli("--recipe", recipe_file(), "--outdir", "/proc/nowhere"))


def test_debug_shows_the_traceback(cli: Cli, recipe_file: Write) -> None:
    done = cli("--recipe", recipe_file(), "--set", "train.lr=fast", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_wrong_usage_is_one_line(cli: Cli) -> None:
    for args in (["--seed", "-1"], ["pretrain"], ["frobnicate"], ["evaluat"], ["--nope"], ["--set", "train.lr=1"]):
        done = cli(*args)
        assert error_line(done, 2).endswith(" --help")


@contextmanager
def started(*args: str | Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "registry.cli", *map(str, args)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(text: str, file: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        found = next(file.parent.parent.glob("*/" + file.name), None) if not file.exists() else file
        if found and text in found.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"{text!r} never came: {process.communicate()}")


def test_the_hint_how_to_go_on_can_be_typed() -> None:
    assert reason(Interrupted("stopped", 130, "my runs/state.pt")) == ("stopped, continue with --resume 'my runs/state.pt'", 130)
    words = ["pretrain", "--resume", "auto", "--recipe", "my recipe.toml", "--resume=old", "--seed", "3"]
    again = going_on(words, "my runs/state.pt")
    assert again.endswith(" pretrain --recipe 'my recipe.toml' --seed 3 --resume 'my runs/state.pt'")
    assert typed("/usr/lib/registry/__main__.py") == [Path(sys.executable).name, "-m", "registry"]
    assert typed(".venv/bin/distill") == [".venv/bin/distill"]


def test_the_whole_command_that_goes_on_works(recipe_file: Write, tmp_path: Path) -> None:
    """It is run by a shell as it was printed."""
    path = recipe_file(
        ("duration_kimg = 0.048", "duration_kimg = 1.6"), ("tick_kimg = 0.016", "tick_kimg = 0.08"), name="my recipe.toml"
    )
    words = [str(Path(sys.executable).with_name("distill")), "--recipe", path.name, "--set", "log.snapshot_ticks=100"]
    run = subprocess.Popen(words, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for("kimg 0.1", tmp_path / "runs" / "00000-my recipe" / "log.txt", run)
    run.send_signal(signal.SIGTERM)
    command = run.communicate(timeout=120)[1].strip().partition("continue with ")[2]
    assert "--recipe 'my recipe.toml' --set log.snapshot_ticks=100 --resume " in command
    done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "resuming at" in done.stdout, done.stderr


def test_a_run_that_is_interrupted_twice_keeps_its_state_and_ends_bit_for_bit_as_if_it_had_not_been(
    cli: Cli, recipe_file: Write, tmp_path: Path
) -> None:
    path = recipe_file(("duration_kimg = 0.048", "duration_kimg = 1.6\nlr_decay = 0.5"), ("snapshot_ticks = 1", "snapshot_ticks = 100"),
                       ("state_ticks = 1", "state_ticks = 100"), ("tick_kimg = 0.016", "tick_kimg = 0.08"))  # fmt: skip
    words = ["--recipe", path, "--outdir", tmp_path / "cut", "--resume", "auto"]
    seen = 0
    for signum, code, reached in ((signal.SIGINT, 130, "kimg 0.1"), (signal.SIGTERM, 143, "kimg 0.5")):
        with started(*words) as process:
            wait_for(reached, tmp_path / "cut" / "00000-short" / "log.txt", process)
            process.send_signal(signum)
            out, err = process.communicate(timeout=180)
        assert process.returncode == code, (out, err)
        (line,) = err.strip().splitlines()
        assert line.startswith("distill: interrupted at ")
        run = only_run(tmp_path / "cut")  # in the same folder
        state = max(run.glob("training-state-*.pt"))
        assert "the state is kept, continue with " in line and line.endswith(f" --resume {state}") and line.count("--resume") == 1
        before, seen = seen, torch.load(state, weights_only=True)["nimg"]
        assert before < seen < 1600
        assert ("resuming at " in out) == bool(before)

    resumed = cli(*words)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming at " in resumed.stdout
    assert only_run(tmp_path / "cut") == run
    whole = cli("--recipe", path, "--outdir", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    one, two = (
        load_network(only_run(tmp_path / d) / "network-snapshot-1.000000-000001.pkl", "generator")[0].state_dict()
        for d in ("cut", "whole")
    )
    assert all(torch.equal(one[k], two[k]) for k in two)
    ticks = [
        [
            round(json.loads(line)["Progress/kimg"]["mean"], 3)
            for line in (only_run(tmp_path / d) / "stats.jsonl").read_text().splitlines()
        ]
        for d in ("cut", "whole")
    ]
    assert ticks[0] == ticks[1]  # no tick twice, none missing


def test_resuming_a_changed_recipe_says_what_changed(cli: Cli, recipe_file: Write, tmp_path: Path) -> None:
    path = recipe_file()
    assert cli("--recipe", path).returncode == 0
    run = only_run(tmp_path / "runs")
    longer = cli("--recipe", path, "--resume", run, "--set", "train.duration_kimg=0.064", "--set", "train.lr=5e-4")
    assert longer.returncode == 0, longer.stderr
    assert "changed since that state was written: [train] lr: 0.001 -> 0.0005" in longer.stdout
    assert "changed since that state was written: [train] duration_kimg: 0.048 -> 0.064" in longer.stdout
    assert len((run / "stats.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("harm", ["truncated", "text"])
def test_a_file_that_is_not_a_training_state(harm: str, cli: Cli, recipe_file: Write, tmp_path: Path) -> None:
    path = recipe_file()
    assert cli("--recipe", path).returncode == 0
    (state,) = only_run(tmp_path / "runs").glob("training-state-*.pt")
    state.write_bytes(state.read_bytes()[:2000] if harm == "truncated" else b"hello")
    assert "not a plain-tensor file written by distill, or damaged" in error_line(cli("--recipe", path, "--resume", state))


def test_a_state_of_another_loss_is_refused_and_skipped(cli: Cli, recipe_file: Write, tmp_path: Path) -> None:
    path = recipe_file(D=float("inf"))
    assert cli("--recipe", path).returncode == 0
    run = only_run(tmp_path / "runs")
    message = error_line(cli("--recipe", path, "--loss", "sid", "--resume", run))
    assert "belongs to another run ([loss] use: ipfm -> sid)" in message
    other = cli("--recipe", path, "--loss", "sid", "--resume", "auto")
    assert other.returncode == 0, other.stderr
    assert "nothing to resume" in other.stdout
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_a_line_cut_off_by_a_kill_does_not_prevent_resuming(cli: Cli, recipe_file: Write, tmp_path: Path) -> None:
    path = recipe_file()
    assert cli("--recipe", path).returncode == 0
    stats = only_run(tmp_path / "runs") / "stats.jsonl"
    stats.write_text(stats.read_text() + '{"Loss/stu')
    done = cli("--recipe", path, "--resume", "auto", "--set", "train.duration_kimg=0.064")
    assert done.returncode == 0, done.stderr
    assert len([json.loads(line) for line in stats.read_text().splitlines()]) == 4


def test_resume_auto_without_a_run_starts_a_new_one(cli: Cli, recipe_file: Write, tmp_path: Path) -> None:
    done = cli("--recipe", recipe_file(), "--resume", "auto")
    assert done.returncode == 0, done.stderr
    assert "nothing to resume" in done.stdout
    assert only_run(tmp_path / "runs").name == "00000-short"


def test_a_terminal_sees_progress_and_a_pipe_sees_lines(recipe_file: Write, tmp_path: Path) -> None:
    master, slave = pty.openpty()
    path = recipe_file(("duration_kimg = 0.048", "duration_kimg = 0.4"), ("snapshot_ticks = 1", "snapshot_ticks = 100"))
    process = subprocess.Popen(
        [sys.executable, "-m", "registry.cli", "--recipe", str(path)],
        stdout=slave, stderr=slave, env=environment({"TERM": "xterm-256color"}), close_fds=True,
    )  # fmt: skip
    os.close(slave)
    seen = b""
    while True:
        try:
            seen += os.read(master, 65536)
        except OSError:
            break
    assert process.wait() == 0
    assert b"eta" in seen
    assert b"\x1b[" in seen  # the bar is redrawn
    assert "━".encode() in seen


def test_pretraining_a_teacher_and_distilling_it(cli: Cli, recipe_file: Write, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        '[data]\nsource = "digits"\nlabels = true\n[network]\nD = 64\nmodel_channels = 8\nchannel_mult = [1]\nnum_blocks = 1\n'
        'attn_resolutions = []\n[noise]\nuse = "electrostatic"\n[train]\nbatch = 16\nduration_kimg = 0.064\nlr = 1e-3\n'
        'lr_rampup_kimg = 0.01\ndevice = "cpu"\n[log]\ntick_kimg = 0.032\nsnapshot_ticks = 2\ngrid = 2\n'
        '[eval]\nmetrics = ["sliced_wasserstein"]\nreference = "digits"\nsamples = 16\nrepeats = 2\nteacher_steps = [2]\n'
    )
    done = cli("pretrain", "--recipe", recipe, "--outdir", tmp_path / "teachers", "--save", tmp_path / "mine.pt")
    assert done.returncode == 0, done.stderr
    net, facts = load_network(tmp_path / "mine.pt", "denoiser")
    assert (facts.D, net.label_dim) == (64.0, 10)
    assert (tmp_path / "mine.quality.json").is_file()
    assert (only_run(tmp_path / "teachers") / "training-state-000000.pt").is_file()
    distilled = cli("--recipe", recipe_file(), "--set", f"teacher.source={tmp_path / 'mine.pt'}")
    assert distilled.returncode == 0, distilled.stderr
    assert "(D = 64, 1×8×8" in distilled.stdout
    again = cli(
        "pretrain", "--recipe", recipe, "--outdir", tmp_path / "teachers", "--resume", "auto", "--set", "train.duration_kimg=0.096"
    )
    assert again.returncode == 0, again.stderr
    assert "resuming at 0.064 kimg" in again.stdout


def test_training_the_feature_network(cli: Cli, tmp_path: Path) -> None:
    done = cli("features", "--recipe", "digits_features", "--set", "classifier.epochs=2", "--save", tmp_path / "f.pt")
    assert done.returncode == 0, done.stderr
    assert load_network(tmp_path / "f.pt", "classifier")[1].others["held_out_accuracy"] > 0.5
    done = cli(
        "features",
        "--recipe",
        "digits_features",
        "--set",
        "classifier.lr=1e20",
        "--set",
        "classifier.epochs=1",
        "--save",
        tmp_path / "g.pt",
    )
    assert done.returncode == 4 and "not finite" in done.stderr
    assert not (tmp_path / "g.pt").exists()


def test_the_options_of_the_command_are_frozen() -> None:
    """Options that scripts rely on cannot appear or disappear unnoticed."""

    def options(command: click.Command) -> set[str]:
        return {o for p in command.params for o in p.opts if o.startswith("--")}

    common = {"--recipe", "--set", "--seed", "--outdir", "--resume", "--dry-run", "--debug"}
    assert options(main) == common | {"--loss", "--fresh-teacher", "--version"}
    assert isinstance(main, click.Group)
    sampling = {"--network", "--key", "--kind", "--sampler", "--steps", "--nfe", "--sigma-init", "--dim", "--rng", "--device"} | {
        "--precision",
        "--compile",
    }
    assert {name: options(command) for name, command in main.commands.items()} == {
        "pretrain": common | {"--save"},
        "features": {"--recipe", "--set", "--save", "--debug"},
        "check": {"--set", "--loss", "--open", "--debug"},
        "plan": {"--set", "--loss", "--gpu", "--gpus", "--tflops", "--here", "--debug"},
        "generate": sampling | {"--seeds", "--class", "--batch", "--outdir", "--format", "--debug"},
        "evaluate": sampling
        | {
            "--metrics",
            "--reference",
            "--inception",
            "--samples",
            "--repeats",
            "--batch",
            "--output",
            "--save-reference",
            "--set",
            "--debug",
        },
        "table": {"--debug"},
        "inspect": {"--globals", "--kind", "--debug"},
        "convert": {"--key", "--kind", "--as", "--debug"},
        "export": {"--key", "--kind", "--sigma-init", "--dim", "--license", "--debug"},
        "dataset": {"--resolution", "--crop", "--folder-labels", "--debug"},
        "plugins": {"--debug"},
        "new-plugin": {"--kind", "--debug"},
        "init": {"--teacher", "--data", "--dim", "--debug"},
        "recipes": {"--debug"},
        "runs": {"--debug"},
        "cache": {"--clear", "--debug"},
        "report": {"--output", "--debug"},
        "launch": {"--processes", "--max-restarts", "--debug"},
        "study": {
            "--recipe",
            "--vary",
            "--seeds",
            "--set",
            "--equal",
            "--jobs",
            "--slurm",
            "--reuse",
            "--retry",
            "--report-only",
            "--outdir",
        }
        | {"--dry-run", "--debug"},
    }


@pytest.mark.parametrize(
    "words",
    [["--dry-run", "pretrain", "--recipe", "teachers/digits_d128"], ["--set", "train.batch=-1", "check", "quickstart"],
     ["--recipe", "quickstart", "check", "quickstart"], ["--seed", "1", "plugins"]],
    ids=lambda w: " ".join(w[:3]),
)  # fmt: skip
def test_options_before_a_subcommand_are_refused(words: list[str], here: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """They would have no effect: a dry run would be a real one."""
    done = here(*words)
    assert done.returncode == 2
    assert f"{words[0]} comes after the command: distill " in done.stderr
