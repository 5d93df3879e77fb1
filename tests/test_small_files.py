"""Small files of ours, and what may lie in their place."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from registry.core.errors import UserError
from registry.edm.pickles import PickleError, read_pickle
from registry.files.json_files import ANYTHING, MOST_BYTES, NoRecord, Number, content, kept, parse_record, read_record
from registry.files.json_lines import append_line, read_lines, readable_lines
from registry.measure.comparison import read_results
from registry.measure.rows import Row, mean, spread
from registry.measure.saved import QUALITY
from registry.measure.teacher_rows import keep, read_kept
from registry.runs.states import recorded_tables
from registry.sample.generate import Form, images_in, parts_in, write_part
from registry.sample.pairs import kept as kept_pairs
from registry.sample.pairs import save
from registry.study.attempts import last_error
from registry.study.cells import Status, read_attempt
from tests.conftest import environment, error_line, tiny_network

Cli = Callable[..., subprocess.CompletedProcess[str]]
NESTED = "[" * 200_000
PAIRS = "pairs"
ROW = {"name": "generator", "evaluations": 1, "values": {"frechet": [1.0, 2.0]}}
WHOLE = {"rows": [ROW], "columns": {"frechet": ["frechet"]}, "protocols": {"frechet": {"metric": "frechet"}}}


def changed(**values: object) -> str:
    return json.dumps(WHOLE | values)


BAD = {
    "nothing": "", "cut off": changed()[:-9], "nested": NESTED, "a list": "[1]", "no rows": "{}", "empty rows": changed(rows=[]),
    "a row of text": changed(rows=["a"]), "a name that is a number": changed(rows=[ROW | {"name": 3}]),
    "no values": changed(rows=[ROW | {"values": {"frechet": []}}]), "text": changed(rows=[ROW | {"values": {"frechet": ["1"]}}]),
    "null": changed(rows=[ROW | {"values": {"frechet": [None]}}]), "huge": changed(rows=[ROW | {"values": {"a": [1e308] * 3}}]),
    "evaluations of text": changed(rows=[ROW | {"evaluations": "1"}]), "columns that are none": changed(columns=[]),
    "a metric without columns": changed(columns={"a": []}), "a protocol of text": changed(protocols={"frechet": "metric"}),
    "a protocol without its metric": changed(protocols={"frechet": {}}),
    "a metric that is a list": changed(protocols={"frechet": {"metric": ["a"]}}),
}  # fmt: skip


def test_numbers_may_be_infinite_but_not_beyond_bounds() -> None:
    numbers = TypeAdapter(list[Number])
    found = parse_record("[1, -2.5, NaN, Infinity, -Infinity]", numbers)
    assert found[:2] == [1, -2.5]
    assert math.isnan(found[2])
    assert found[3:] == [math.inf, -math.inf]
    for text in ("[1e200]", "[true]", '["1"]', "[null]", "{}", "", NESTED):
        with pytest.raises(NoRecord):
            parse_record(text, numbers)


def test_only_regular_files_of_some_length_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "long", "wb") as file:
        file.truncate(MOST_BYTES + 1)
    for name, wanted in (("pipe", "is not a file"), ("long", "is too long")):
        with pytest.raises(NoRecord, match=wanted):
            content(tmp_path / name)
    with pytest.raises(OSError, match="directory"):
        content(tmp_path)
    assert [kept(tmp_path / name, ANYTHING) for name in ("pipe", "long", "none", "")] == [None] * 4
    (tmp_path / "good").write_text('{"a": 1}')
    assert kept(tmp_path / "good", ANYTHING) == {"a": 1}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_a_table_of_results_is_one_or_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "quality.json"
    file.write_text(changed())
    assert read_record(file, QUALITY).rows[0].values == {"frechet": [1, 2]}
    file.write_text(text)
    with pytest.raises(UserError, match="neither a result of"):
        read_results(str(file))
    assert kept(file, QUALITY) is None


def test_text_from_files_is_escaped_in_tables(tmp_path: Path, cli: Cli) -> None:
    evil = "\x1b[2J\x1b]0;hi\x07[/b][link=x]\u202e"
    content = {
        "results": {"a": {"[/b]": {"values": [1.0, 2.0]}}}, "evaluations": 1, "network": evil,
        "protocols": {evil: {"metric": "m" + evil, evil: evil, "list": [evil]}},
    }  # fmt: skip
    (tmp_path / "evil.json").write_text(json.dumps(content))
    done = cli("table", tmp_path / "evil.json")
    assert done.returncode == 0, done.stderr
    assert not {"\x1b", "\x07", "\u202e"} & set(done.stdout)
    assert "[/b]" in done.stdout.replace("\n", "")
    (tmp_path / "evil.json").write_text(json.dumps(content | {"results": {"a": {evil: {"values": [1.0, 2.0]}}}}))
    line = error_line(cli("table", tmp_path / "evil.json"))
    assert "neither a result" in line and line.isprintable()


def test_means_of_numbers_that_are_too_large_are_infinite() -> None:
    assert mean([1.0, 2.0]) == 1.5
    assert mean([1e308, 1e308, -1e308]) == math.inf
    assert Row("a", 1, {"b": [1e308] * 3}).text("b").startswith("inf")
    assert spread([1.0, 3.0]) == pytest.approx(math.sqrt(2))


def test_damaged_rows_of_a_teacher_are_none(tmp_path: Path) -> None:
    file = tmp_path / "teacher.quality.json"
    keep(file, {'{"D": "3.0"}': {"row": ROW | {"note": ""}, "date": "2026-11-22", "versions": {}}})
    assert list(read_kept(file)) == ['{"D": "3.0"}']
    file.write_text(file.read_text().replace("1.0", "5.0"))
    assert read_kept(file) == {}  # a digit is another one
    good = re.sub(r',\s*"digest": "\w{16}"', "", file.read_text()).replace("5.0", "1.0")
    assert "digest" not in good
    for old, new in (('"values"', '"valuez"'), ("1.0", "null"), ('"frechet": [', '"frechet": "abc", "x": ['), ('"date"', '"data"')):
        assert old in good
        file.write_text(good.replace(old, new))
        assert read_kept(file) == {}
    file.write_text(good.replace('"name"', '"zzz": 1, "name"'))
    assert Row(**read_kept(file)['{"D": "3.0"}']["row"]).values == {"frechet": [1, 2]}
    file.write_text(NESTED)
    assert read_kept(file) == {}


def test_a_damaged_row_of_a_teacher_costs_no_other(tmp_path: Path) -> None:
    file, rows = tmp_path / "teacher.quality.json", {}
    for D in "345":
        rows[f'{{"D": "{D}"}}'] = {"row": ROW | {"note": "", "values": {"fid": [float(D)]}}, "date": "2026-11-22", "versions": {}}
    third = rows.popitem()
    keep(file, rows)
    damaged = file.read_text().replace("3.0", "3.5")
    file.write_text(damaged)
    assert list(read_kept(file)) == ['{"D": "4"}']
    told = keep(file, dict([third]))
    assert told.endswith("teacher.quality.json; the file before has damaged rows, and is teacher.quality.json.damaged now")
    assert list(read_kept(file)) == ['{"D": "4"}', '{"D": "5"}']
    assert (tmp_path / "teacher.quality.json.damaged").read_text() == damaged


@pytest.mark.parametrize("text", [NESTED, "teacher = 3\nnoise = [1]", "a." * 50_000 + "b = 1", "a = [[[" * 5000, "\xff"])
def test_a_damaged_recipe_in_a_run_folder_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(text, encoding="latin-1")
    assert recorded_tables(tmp_path) is None
    (tmp_path / "recipe.toml").write_text("[loss]\nuse = 'sid'\n[train]\n[log]\n")
    assert recorded_tables(tmp_path) == {"loss": {"use": "sid"}, "train": {}, "log": {}}


def test_damaged_lines_are_passed_over(tmp_path: Path) -> None:
    lines = [
        '{"Guard/x_dropped": 3}',
        '{"Loss/x": {"mean": 1, "num": "a"}}',
        "[1]",
        "3",
        NESTED,
        '{"kimg": 1, "results": 1}',
        '{"a": 1}',
        '{"Loss/x": {"mean": 1, "num": 2}}',
    ]
    whole = {"Loss/x": {"mean": 1, "num": 2}, "Progress/kimg": {"mean": 3}}
    (tmp_path / "stats.jsonl").write_text("\n".join([*lines, json.dumps(whole)]) + "\n\xff\xfe", encoding="latin-1")
    assert readable_lines(tmp_path / "stats.jsonl") == [whole]
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert readable_lines(tmp_path / "pipe.jsonl") == []


@pytest.mark.parametrize("text", ['{"exit": "a"}', '{"exit": [1]}', NESTED, "[]", ""])
def test_a_damaged_note_of_an_attempt_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "attempt.json").write_text(text)
    assert read_attempt(tmp_path) == {}
    (tmp_path / "attempt.json").write_text('{"exit": 1, "started": 3}')
    assert read_attempt(tmp_path) == {"exit": 1, "started": 3}
    assert Status.FAILED == "failed"


FORM = Form(np.zeros((0, 8, 8, 1), np.uint8), label_dim=0)


@pytest.mark.parametrize(
    "change",
    [
        {"arr_0": np.zeros((2, 3, 3, 1), np.uint8)}, {"arr_0": np.zeros((2, 8, 8, 1))}, {"arr_0": np.uint8(3)},
        {"seeds": np.zeros((2, 2), int)}, {"seeds": np.zeros(3, int)}, {"seeds": np.array(["a", "b"])}, {"labels": np.zeros(1, int)},
    ],
    ids=str,
)  # fmt: skip
def test_images_of_another_form_are_none(change: dict[str, np.ndarray], tmp_path: Path) -> None:
    write_part(tmp_path, [3, 1], np.zeros((2, 8, 8, 1), np.uint8), None)
    (path,) = parts_in(tmp_path, FORM)
    assert parts_in(tmp_path, FORM) == {path: [3, 1]}
    with np.load(path) as part:
        arrays = dict(part) | change
    np.savez(path, **arrays)  # type: ignore[arg-type]
    assert images_in(path, FORM) is None
    assert parts_in(tmp_path, FORM) == {}
    assert not path.exists()


def test_a_small_file_of_many_images_is_none(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", arr_0=np.zeros((5_000_000, 8, 8, 1), np.uint8), seeds=np.zeros(5_000_000, np.uint8))
    assert (tmp_path / "a.npz").stat().st_size < 2**20
    assert images_in(tmp_path / "a.npz", FORM) is None
    os.mkfifo(tmp_path / "b.npz")
    assert images_in(tmp_path / "b.npz", FORM) is None


def test_pairs_of_another_shape_are_made_again(tmp_path: Path) -> None:
    shape, facts = (1, 5, 1, 8, 8), {"a": 1}

    def found(**changes: object) -> object:
        content = {"starts": torch.zeros(shape), "images": torch.zeros(shape), "labels": None, "provenance": facts} | changes
        save(tmp_path / "pairs.pt", PAIRS, content)
        return kept_pairs(tmp_path / "pairs.pt", facts, shape, (5, 0))

    assert found() is not None
    assert found(images=torch.zeros(3, 2)) is None
    assert found(images=torch.full(shape, math.nan)) is None
    assert found(labels=torch.zeros(5, 3)) is None
    assert found(provenance={"a": 2}) is None


def test_an_archive_with_two_directories_is_refused(tmp_path: Path, cli: Cli) -> None:
    """Python reads the one before the end record, torch the one that the record names."""
    files = []
    for network in (tiny_network(), tiny_network()):
        buffer = io.BytesIO()
        torch.save({"ema": network.state_dict()}, buffer)
        files.append(buffer.getvalue())
    (tmp_path / "two.pt").write_bytes(files[0] + files[1])
    with pytest.raises(PickleError, match="another end record than the one that its end names"):
        read_pickle(tmp_path / "two.pt")
    assert "another end record" in error_line(cli("inspect", tmp_path / "two.pt"))


def test_a_full_disk_behind_the_output_is_told_in_one_line(tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        with open("/dev/full", "w") as full:
            return subprocess.run(
                [sys.executable, "-m", "registry.cli", *words], cwd=tmp_path, env=environment(), stdout=full, stderr=subprocess.PIPE,
                text=True, timeout=120, check=False,
            )  # fmt: skip

    for words in (["plugins"], ["check", "quickstart"], ["--help"]):
        done = run(*words)
        assert (done.returncode, done.stderr) == (1, "distill: the output cannot be written: No space left on device\n")
    sets = ["warmup.kimg=0", "train.duration_kimg=0.016", "train.batch=8", "eval.metrics=[]"]
    done = run("--recipe", "quickstart", *(word for text in sets for word in ("--set", text)))
    assert (done.returncode, done.stderr) == (0, "")
    assert "the run is in" in next(tmp_path.glob("*/*/log.txt")).read_text()


def test_any_locale_can_show_every_line(tmp_path: Path) -> None:
    env = environment({"PYTHONIOENCODING": "ascii", "LC_ALL": "POSIX"})
    words = [sys.executable, "-m", "registry.cli", "plugins"]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Fr\\xe9chet" in done.stdout.replace("\n", " ")


def test_a_run_goes_on_when_nobody_reads_its_output_any_more(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "registry.cli", "--recipe", str(recipe_file())]
    with subprocess.Popen(words, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None and run.stderr is not None
        run.stdout.readline()
        run.stdout.close()
        errors = run.stderr.read()
    assert (run.returncode, errors) == (0, b"")
    (folder,) = (tmp_path / "runs").iterdir()
    log = (folder / "log.txt").read_text()
    assert log.count("WARNING nobody reads the output any more; the run goes on") == 1
    assert "the run is in" in log and list(folder.glob("training-state-*.pt"))


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", ">&- 2>&-"])
def test_a_closed_output_is_no_reason_to_fail(closed: str, generator_file: Path, tmp_path: Path) -> None:
    line = f'"{sys.executable}" -m registry.cli generate --network "{generator_file}" --seeds 0-3 --outdir out {closed}'
    done = subprocess.run(line, shell=True, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list((tmp_path / "out").glob("*.png"))) == 4


def test_a_line_is_added_on_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append_line(path, {"Progress/kimg": {"mean": 1}})
    with open(path, "ab") as file:
        file.write(b'{"Progress/kimg": {"me')  # a process was killed in the middle of it
    append_line(path, {"Progress/kimg": {"mean": 2}})
    assert [entry["Progress/kimg"]["mean"] for entry in read_lines(path)] == [1, 2]
    assert path.stat().st_mode & 0o600 == 0o600


def test_a_line_with_a_flipped_bit_is_not_believed(tmp_path: Path) -> None:
    path, line = tmp_path / "metric-fid.jsonl", {"results": {"fid": 2.5}, "metric": "fid50k", "snapshot_pkl": "a.pt", "kimg": 1.0}
    append_line(path, line)
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert all(line.items() <= found.items() for found in read_lines(path)), damaged  # the digest's own name may be another


def test_a_run_that_goes_on_says_which_lines_are_damaged(recipe_file: Callable[..., Path], here: Cli, tmp_path: Path) -> None:
    words = ["--recipe", recipe_file(), "--set", 'eval.metrics=["sliced_wasserstein"]', "--set", "eval.reference=digits"]
    assert here(*words).returncode == 0
    file = tmp_path / "runs" / "00000-short" / "metric-sliced_wasserstein.jsonl"
    first, *later = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(first.replace(b'"sliced_w2": ', b'"sliced_w2": 1') + b"".join(later))
    assert len(read_lines(file)) == len(later) > 0
    again = here(*words, "--resume", "auto")
    assert again.returncode == 0 and f"WARNING {file.name}: 1 damaged line is left out" in again.stdout
    assert file.read_bytes() == b"".join(later)


@pytest.mark.parametrize("name", ["stats.jsonl", "metric-sliced_wasserstein.jsonl"])
def test_a_run_goes_on_without_lines_that_cannot_be_read(
    name: str, recipe_file: Callable[..., Path], here: Cli, tmp_path: Path
) -> None:
    words = ["--recipe", recipe_file(), "--set", 'eval.metrics=["sliced_wasserstein"]', "--set", "eval.reference=digits"]
    assert here(*words).returncode == 0
    file = tmp_path / "runs" / "00000-short" / name
    with open(file, "ab") as large:
        large.truncate(3 << 30)
    again = here(*words, "--resume", "auto")
    assert again.returncode == 0 and f"WARNING {name}: is too long; was renamed to {name}.damaged" in again.stdout
    assert file.with_name(f"{name}.damaged").stat().st_size == 3 << 30
    assert not file.exists() or file.stat().st_size < 1 << 20


def test_the_reason_of_a_run_stands_at_the_end_of_its_errors(tmp_path: Path) -> None:
    with open(tmp_path / "errors.txt", "wb") as file:
        file.truncate(1 << 35)
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + b"x" * 70_000 + b"\ndistill: there is not enough memory\n")
    assert last_error(tmp_path, 1) == "there is not enough memory"
    (tmp_path / "errors.txt").write_bytes(b"\xff\n")
    assert last_error(tmp_path, 1) == "\ufffd"


def test_a_name_in_two_lines_is_one_line(recipe_file: Callable[..., Path], here: Cli, tmp_path: Path) -> None:
    assert "00000-a_b; its page" in here("--recipe", recipe_file(name="a\nb.toml"), "--set", "eval.metrics=[]").stdout
    assert (tmp_path / "runs" / "00000-a_b").is_dir()


def test_no_empty_file_is_left_on_a_full_disk(tmp_path: Path) -> None:
    script = (
        "import pathlib, resource, signal\nfrom registry.files.json_lines import append_line\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "append_line(pathlib.Path('a.jsonl'), {'a': 1})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True, check=False
    )
    assert "OSError: [Errno 27] File too large" in done.stderr and not list(tmp_path.iterdir())


def test_lines_are_not_added_to_a_pipe_and_nobody_waits(tmp_path: Path, cli: Callable[..., Any], generator_file: Path) -> None:
    os.mkfifo(tmp_path / "o.jsonl")
    with pytest.raises(OSError):
        append_line(tmp_path / "o.jsonl", {})
    words = ["--metrics", "sliced_wasserstein", "--reference", "digits", "--samples", 8, "--output", tmp_path / "o.json"]
    done = cli("evaluate", "--network", generator_file, *map(str, words), timeout=60)
    assert "o.jsonl beside it is not a file that lines can be added to" in error_line(done)
