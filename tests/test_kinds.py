"""Denoiser or generator: what files of other projects are taken to be, how it is said, and how the user says otherwise."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.core.errors import UserError
from registry.files.formats import load_network, save_network
from registry.files.kinds import guess_kind, is_published
from registry.files.locate import locate, locate_file, newest_network
from registry.runs.distill import distill
from registry.sample.opening import open_sampler
from tests.conftest import HERE, error_line, tiny_network
from tests.pickle_writer import persistent, write

Here = Callable[..., subprocess.CompletedProcess[str]]
GOLDEN = HERE / "golden"
SID = "network-snapshot-1.200000-000512.pkl"
EDM = "edm-cifar10-32x32-uncond-vp.pkl"
DOUBT = "does not say what it holds; it is taken to be a"


@pytest.fixture
def repickled(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a diffusion network in EDM's layout, but with the key `ema` alone, under a name."""

    def make(name: str) -> Path:
        record = persistent(tiny_network(D=math.inf))
        for place in (record.state, record.state["_init_kwargs"]):  # EDM's networks say nothing of D
            for attribute in ("pfgmpp", "D", "N"):
                place.pop(attribute, None)
        return write(tmp_path / name, {"ema": record})

    return make


# --------------------------------------------------------------------------------------------------------- guesses

ONLY, EDMS = ["ema"], ["ema", "loss_fn", "augment_pipe", "dataset_kwargs"]
SIDS = ["fake_score", "G", "G_ema", "fake_score_optimizer_state", "g_optimizer_state"]
CASES = [  # source, key, keys, kind, whether it is in doubt
    (SID, "ema", ONLY, "generator", True),
    (f"runs/{SID}", "ema", EDMS, "denoiser", False),
    ("network-snapshot--0.500000-000512.pkl", "ema", ONLY, "generator", True),
    ("network-snapshot-000512.pkl", "ema", ONLY, "denoiser", True),
    ("mine.pkl", "ema", ONLY, "denoiser", True),
    ("mine.pkl", "ema", EDMS, "denoiser", False),
    (EDM, "ema", ONLY, "denoiser", False),
    ("edm-ffhq-64x64-uncond-ve.pkl", "ema", ONLY, "denoiser", False),
    ("edm:cifar10-uncond", "ema", ONLY, "denoiser", False),
    (f"https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/{EDM}", "ema", ONLY, "denoiser", False),
    (f"cache/0123456789ab-{EDM}", "ema", ONLY, "denoiser", False),
    ("pfgmpp:ffhq_ddpm_D_128", "ema", ONLY, "denoiser", False),
    ("ffhq_ddpm_D_128.pkl", "ema", ONLY, "denoiser", False),
    ("ffhq_ddpm_D_128/training-state-009000.pkl", "ema", ONLY, "denoiser", False),
    (f"ffhq_ddpm_D_128/{SID}", "ema", ONLY, "generator", True),
    ("training-state-000512.pt", "G_ema", SIDS, "generator", False),
    ("training-state-000512.pt", "G_ema990", SIDS, "generator", False),
    ("training-state-000512.pt", "fake_score", SIDS, "denoiser", False),
]


@pytest.mark.parametrize(("source", "key", "keys", "kind", "in_doubt"), CASES, ids=[f"{c[0]} {c[1]} {len(c[2])}" for c in CASES])
def test_names_and_layouts(source: str, key: str, keys: list[str], kind: str, in_doubt: bool) -> None:
    guess = guess_kind(source, key, keys)
    assert (guess.kind, bool(guess.doubt)) == (kind, in_doubt)


def test_only_exact_names_are_published_ones() -> None:
    assert not any(
        map(is_published, ("my-edm-cifar10-32x32-uncond-vp.pkl", "edm-cifar10.pkl", "ffhq_ddpm_D_128_mine.pkl", "edm:mine"))
    )


# --------------------------------------------------------------------------------------------------------- sampling


def test_a_denoisers_pickle_with_ema_alone_is_sampled_as_one(repickled: Callable[[str], Path], here: Here, tmp_path: Path) -> None:
    file = repickled("mine.pkl")
    made = here("generate", "--network", file, "--nfe", 5, "--seeds", "0-1", "--outdir", tmp_path / "a")
    assert made.returncode == 0, made.stderr
    assert (
        f"{file} {DOUBT} denoiser, because it holds only 'ema' and is not named like SiD's snapshots; --kind says otherwise"
        in made.stdout
    )
    assert "5 evaluations each" in made.stdout
    said = here("generate", "--network", file, "--kind", "generator", "--seeds", "0-1", "--outdir", tmp_path / "b")
    assert said.returncode == 0, said.stderr
    assert DOUBT not in said.stdout
    assert "1 evaluation each" in said.stdout
    assert "--kind denoiser" not in said.stdout


def test_sids_snapshots_are_generators_unless_the_user_knows_better(here: Here, tmp_path: Path) -> None:
    args = ["generate", "--network", GOLDEN / SID, "--seeds", "0-1", "--outdir", tmp_path / "a"]
    message = error_line(here(*args, "--nfe", 35))
    assert message.startswith(f"distill: --nfe 35: {GOLDEN / SID} {DOUBT} generator, because SiD's snapshots have such names")
    assert message.endswith("it takes one evaluation; kind = denoiser says otherwise")
    made = here(*args)
    assert f"{DOUBT} generator" in made.stdout and "1 evaluation each" in made.stdout
    other = here(*args[:-1], tmp_path / "b", "--kind", "denoiser", "--nfe", 5)
    assert DOUBT not in other.stdout and "5 evaluations each" in other.stdout


def test_a_published_name_leaves_no_doubt(repickled: Callable[[str], Path]) -> None:
    sampler = open_sampler(str(repickled(EDM)))
    assert (sampler.settings["kind"], sampler.nfe, sampler.doubt) == ("teacher", 35, None)


def test_what_the_user_says_must_not_contradict_the_file(here: Here, tmp_path: Path, repickled: Callable[[str], Path]) -> None:
    save_network(tmp_path / "g.pkl", "generator", tiny_network(), {"D": 128.0})
    for command in (["inspect", tmp_path / "g.pkl"], ["convert", tmp_path / "g.pkl", tmp_path / "x.pt"],
                    ["generate", "--network", tmp_path / "g.pkl", "--seeds", "0", "--outdir", tmp_path / "out"]):  # fmt: skip
        assert "--kind denoiser: " in (message := error_line(here(*command, "--kind", "denoiser")))
        assert "g.pkl is a generator; leave this out" in message
    with pytest.raises(UserError, match="is a generator; leave this out"):
        open_sampler(str(repickled("mine.pkl")), kind="generator", sampler="heun")


# --------------------------------------------------------------------------------------------------------- inspect


def test_inspect_says_what_is_assumed(repickled: Callable[[str], Path], here: Here) -> None:
    mine = here("inspect", repickled("mine.pkl")).stdout
    assert "written by EDM, or SiD" in mine and f"{DOUBT} denoiser" in mine and "--kind says otherwise" in mine
    known = here("inspect", repickled(EDM)).stdout
    assert "written by EDM\n" in known and DOUBT not in known
    said = here("inspect", repickled("mine.pkl"), "--kind", "generator").stdout
    assert "written by SiD\n" in said and DOUBT not in said
    state = here("inspect", GOLDEN / "training-state-sid-000512.pt").stdout
    assert [line.split()[:2] for line in state.splitlines() if line.startswith(("fake", "G"))] == [
        ["fake_score", "denoiser"], ["G", "generator"], ["G_ema", "generator"],
    ]  # fmt: skip
    assert DOUBT not in state


# --------------------------------------------------------------------------------------------------------- teachers

DISTILL = ("teacher.use=edm", "noise.use=gaussian", "loss.use=sid", "train.duration_kimg=0.008", "log.grid=1", "train.seed=0")


def log_of(run: Path) -> str:
    return (run / "log.txt").read_text()


def test_a_teacher_that_looks_like_a_generator_is_taken_with_a_warning(
    recipe_file: Callable[..., Path], here: Here, tmp_path: Path
) -> None:
    recipe, sets = recipe_file(), [*DISTILL, f"teacher.source={GOLDEN / SID}"]
    words = [word for text in sets for word in ("--set", text)]
    for command in (["check", recipe, *words], ["--recipe", recipe, "--dry-run", *words]):
        done = here(*command)
        assert done.returncode == 0, done.stderr
        assert "WARNING: [teacher] source = " in done.stdout
        assert "looks like a generator, because SiD's snapshots have such names; a teacher must be a denoiser" in done.stdout
        assert "WARNING: [teacher]" not in here(*command, "--set", "teacher.kind=denoiser").stdout
    log = log_of(distill(str(recipe), sets=sets).folder)
    assert f"WARNING: {GOLDEN / SID} looks like a generator, because SiD's snapshots have such names" in log
    assert "looks like" not in log_of(distill(str(recipe), sets=[*sets, "teacher.kind=denoiser"]).folder)
    refused = here("check", recipe, *words, "--set", "teacher.kind=generator").stderr
    assert "[teacher] kind = 'generator': must be 'denoiser'" in refused


def test_a_state_of_sid_is_taken_with_a_warning_or_by_its_denoiser(recipe_file: Callable[..., Path]) -> None:
    sets = [*DISTILL, f"teacher.source={GOLDEN / 'training-state-sid-000512.pt'}"]
    log = log_of(distill(str(recipe_file()), sets=sets).folder)
    assert "looks like a generator, because 'G_ema' is a generator in SiD's training states" in log
    assert "looks like" not in log_of(distill(str(recipe_file()), sets=[*sets, "teacher.key=fake_score"]).folder)


def test_a_teacher_of_unknown_kind_is_mentioned(recipe_file: Callable[..., Path], repickled: Callable[[str], Path]) -> None:
    mine, known = (
        log_of(distill(str(recipe_file()), sets=[*DISTILL, f"teacher.source={repickled(n)}"]).folder) for n in ("mine.pkl", EDM)
    )
    assert (
        f"{DOUBT} denoiser, because it holds only 'ema' and is not named like SiD's snapshots; kind = \"denoiser\" says that it is one"
        in mine
    )
    assert DOUBT not in known


# ------------------------------------------------------------------------------------------------------ conversion


@pytest.mark.parametrize("suffix", [".pt", ".pkl", ".safetensors"])
def test_a_converted_file_is_as_uncertain_as_the_one_it_came_from(
    suffix: str, repickled: Callable[[str], Path], here: Here, tmp_path: Path
) -> None:
    target = tmp_path / f"converted{suffix}"
    done = here("convert", repickled(SID), target)
    assert f"{DOUBT} generator" in done.stdout and "generator of D = inf" in done.stdout
    _, facts = load_network(target)
    assert (facts.kind, facts.looks_like, set(facts.assumed), facts.dimension()) == (None, "generator", {"kind", "D"}, math.inf)
    assert "taken to be a generator, because the file that it was converted from does not say" in here("inspect", target).stdout
    assert open_sampler(str(target), kind="denoiser", nfe=5, D=128.0).settings["D"] == 128.0
    load_network(target, "denoiser")  # a teacher's builder gives a remark
    again = tmp_path / f"again{suffix}"
    assert here("convert", target, again, "--kind", "denoiser").returncode == 0
    _, facts = load_network(again)
    assert (facts.kind, set(facts.assumed)) == ("denoiser", {"D"})
    with pytest.raises(UserError, match="is a denoiser; leave this out"):
        open_sampler(str(again), kind="generator")
    assert open_sampler(str(again), nfe=5, D=128.0).settings["D"] == 128.0


def test_a_file_that_states_its_D_is_certain_when_converted(tmp_path: Path) -> None:
    from registry.files.formats import convert_network

    said: list[str] = []
    convert_network(str(GOLDEN / "teacher_pfgmpp_ncsnpp.pkl"), str(tmp_path / "x.pt"), on_doubt=said.append)
    assert load_network(tmp_path / "x.pt")[1].assumed == {} and not said
    with pytest.raises(UserError, match="was trained with D = 128; leave this out"):
        open_sampler(str(tmp_path / "x.pt"), D=64.0)


# ---------------------------------------------------------------------------------------------------------- folders


def test_a_folder_is_its_newest_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe_file: Callable[..., Path]) -> None:
    folder = tmp_path / "ffhq_ddpm_D_128"
    folder.mkdir()
    assert newest_network(folder) is None and newest_network(tmp_path / "nowhere") is None
    with pytest.raises(ValueError, match="is a folder without a network"):
        locate(str(folder))
    with pytest.raises(ValueError, match="is no regular file"):
        locate(os.devnull)
    with pytest.raises(ValueError, match="is a folder; give a file"):
        locate_file(str(folder))
    for name in (
        "training-state-000012.pt",
        "training-state-000012.pkl",
        "network-snapshot-000012.pkl",
        "training-state-000013.pt",
    ):
        shutil.copy(GOLDEN / "training-state-pfgmpp-000012.pt", folder / name)
        assert locate(str(folder)) == str(folder / name)  # each takes precedence over the ones before it
    for name in ("training-state-000013.pt", "training-state-000012.pt", "network-snapshot-000012.pkl"):
        (folder / name).unlink()
    (folder / "training-state-000099.quality.json").write_text("{}")
    sets = [f"teacher.source={folder}", "train.duration_kimg=0.008", "log.grid=1"]
    run = distill(str(recipe_file()), sets=sets).folder
    assert f'source = "{folder / "training-state-000012.pkl"}"' in (run / "recipe.toml").read_text()
    monkeypatch.setenv("DISTILL_TEACHERS", str(tmp_path))
    again = distill(str(recipe_file()), sets=["teacher.source=pfgmpp:ffhq_ddpm_D_128", *sets[1:]])
    assert "distilling pfgmpp:ffhq_ddpm_D_128 (D = 128" in log_of(again.folder)
