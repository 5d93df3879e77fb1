"""Recipes: what is read, what overrides it, and the messages for mistakes."""

from __future__ import annotations

import math
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.builtin import SlicedWassersteinConfig
from registry.core.errors import UserError
from registry.core.settings import NoiseConfig
from registry.files.locate import shipped
from registry.plugins.component import Component
from registry.plugins.loading import Plugins, Registered
from registry.recipe.reading import expect, resolve
from registry.recipe.resolved import FeaturesRecipe, PretrainRecipe, Recipe, dumps
from registry.recipe.tables import EvalConfig, LogConfig, TrainConfig
from registry.recipe.texts import lay_over, parse_set, read_tables
from tests.conftest import ROOT

Write = Callable[..., Path]


def resolved(path: Path | str, plugins: Plugins, *sets: str, **flags: object) -> Recipe:
    return expect(resolve(str(path), plugins, sets, **flags), Recipe)  # type: ignore[arg-type]


def errors(path: Path | str, plugins: Plugins, *sets: str, **flags: object) -> list[str]:
    with pytest.raises(UserError) as caught:
        resolve(str(path), plugins, sets, **flags)  # type: ignore[arg-type]
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    "path", sorted(p for p in (ROOT / "recipes").rglob("*.toml") if p.parent.name != "studies"), ids=lambda p: p.stem
)
def test_shipped_recipes_resolve_and_survive_being_written(path: Path, plugins: Plugins, tmp_path: Path) -> None:
    recipe = resolve(str(path), plugins)
    again = tmp_path / path.name
    again.write_text(dumps(recipe.tables()))
    assert resolve(str(again), plugins).tables() == recipe.tables()
    name = path.relative_to(ROOT / "recipes").with_suffix("").as_posix()
    assert resolve(name, plugins).path == path  # also found by its bare name


def test_each_kind_of_recipe_has_its_command(plugins: Plugins) -> None:
    assert isinstance(resolve("teachers/digits_d128", plugins), PretrainRecipe)
    assert isinstance(resolve("digits_d128", plugins), Recipe)
    assert isinstance(resolve("digits_features", plugins), FeaturesRecipe)
    with pytest.raises(UserError, match="this recipe is run with: distill pretrain --recipe"):
        expect(resolve("teachers/digits_d128", plugins), Recipe)


def test_defaults_are_those_of_the_papers() -> None:
    train = TrainConfig(duration_kimg=1)
    assert (train.batch, train.lr, train.glr, train.betas, train.gbetas) == (256, 1e-5, 1e-5, (0.0, 0.999), (0.0, 0.999))
    assert (train.loss_scaling, train.generator_loss_scaling, train.student_steps, train.lr_decay) == (1, 100, 1, 0)
    assert (train.ema_halflife_kimg, train.ema_rampup_ratio, train.eps) == (500, 0.05, 1e-8)


def test_precedence(recipe_file: Write, plugins: Plugins) -> None:
    """--set and flags > [swap.*] > recipe > defaults."""
    swap = '[swap.sid]\nteacher = { use = "edm", source = "digits_dinf" }\nnoise = { use = "gaussian", t_max = 700 }\nloss = { alpha = 1.2 }\n'
    path = recipe_file(('use = "electrostatic"', 'use = "electrostatic"\nsigma_init = 3.0\nt_max = 600\nD = 128'), append=swap)
    plain = resolved(path, plugins)
    assert (plain.loss.name, plain.noise.name, plain.teacher.name) == ("ipfm", "electrostatic", "pfgmpp")
    swapped = resolved(path, plugins, "noise.sigma_min=0.01", "loss.alpha=0.7", loss="sid", seed=5, outdir="elsewhere")
    assert (swapped.loss.name, swapped.noise.name, swapped.teacher.name) == ("sid", "gaussian", "edm")
    noise = swapped.noise.table()
    assert (noise["sigma_init"], noise["t_max"], noise["sigma_min"], noise["rho"]) == (3.0, 700, 0.01, 7.0)
    assert "D" not in noise  # a key of the old noise that the new one does not have
    assert swapped.loss.table()["alpha"] == 0.7
    assert (swapped.train.seed, swapped.log.outdir) == (5, "elsewhere")


def test_swap_to_the_same_component_keeps_its_keys(plugins: Plugins) -> None:
    ipfm = resolved("quickstart", plugins, loss="ipfm")
    assert ipfm.tables() == resolved("quickstart", plugins).tables()


@pytest.mark.parametrize(
    ("text", "value"),
    [("a.b=1", 1), ("a.b=1e-3", 1e-3), ("a.b=inf", math.inf), ("a.b=true", True), ("a.b=[1, 2]", [1, 2]), ("a.b=x/y.pt", "x/y.pt"),
     ('a.b="7"', "7"), ("a.b=", ""), ("a.b.c=x=y", "x=y")],
)  # fmt: skip
def test_set_reads_values_as_toml(text: str, value: object) -> None:
    keys, found = parse_set(text)
    assert keys == text.split("=")[0].split(".")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["train", "train=3", "train.batch", ".batch=3", "a..b=1"])
def test_a_set_that_cannot_be_read(text: str) -> None:
    with pytest.raises(UserError, match=r"write it as table\.key=value"):
        parse_set(text)


def test_all_errors_of_a_recipe_at_once(recipe_file: Write, plugins: Plugins) -> None:
    path = recipe_file(
        ('use = "pfgmpp"', 'use = "pfgm"'), ("batch = 8", "batch = 8\nbatch_gpu = 5"), ("lr = 1e-3\nglr", 'lr = "fast"\ngllr'),
        append='[trian]\nx = 1\n',
    )  # fmt: skip
    found = errors(path, plugins)
    assert len(found) == 5
    assert all(line.startswith(f"{path}: [") for line in found)
    assert (
        f"{path}: [teacher] use = 'pfgm': no teacher is called 'pfgm' (did you mean 'pfgmpp'?); known: analytic, edm, pfgmpp"
        in found
    )
    assert f"{path}: [train] lr = 'fast': must be a valid number" in found
    assert any(
        line.startswith(f"{path}: [train] gllr is unknown (did you mean 'glr'?); allowed: batch, batch_gpu,") for line in found
    )
    assert f"{path}: [train] batch_gpu = 5: must divide batch = 8; the next lower number that does is 4" in found
    assert any(
        line.startswith(f"{path}: [trian] is no table of a recipe (did you mean 'train'?); tables: teacher,") for line in found
    )


WRONG = {
    "a generator that starts above the teacher": (("noise.sigma_init=100",), "[noise] sigma_max = 80.0: must be at least sigma_init = 100"),
    "missing file": (("noise.sigma_max=80", "teacher.source=nowhere.pt"), "[teacher] source = 'nowhere.pt': no such file"),
    "near name of a shipped file": (("teacher.source=digits_d182",), "no such file (did you mean 'digits_d128'?)"),
    "D not positive": (("noise.D=0",), "[noise] D = 0: must be greater than 0"),
    "D negative": (("noise.D=-3",), "[noise] D = -3: must be greater than 0"),
    "other D": (("teacher.D=128", "noise.D=64"), "[noise] use = 'electrostatic': has D = 64, but the teacher has D = 128"),
    "sid at finite D": (("teacher.D=128", "loss.use=sid"), "[loss] use = 'sid': is defined for diffusion (D = inf), but the teacher has D = 128; use ipfm, or a teacher that sid serves"),
    "gaussian at finite D": (("teacher.D=128", "noise.use=gaussian"), 'the teacher has D = 128; use electrostatic'),
    "no such metric": (('eval.metrics=["frechett"]',), "no metric is called 'frechett' (did you mean 'frechet'?); known: coverage"),
    "metric's key": (('eval.metrics=["frechet"]', "eval.frechet.fetures=1"), "[eval.frechet] fetures is unknown (did you mean 'features'?)"),
    "unknown in eval": (("eval.sample=3",), "[eval] sample is unknown (did you mean 'samples'?)"),
    "boolean for a number": (("train.batch=true",), "[train] batch = True: must be a valid integer"),
    "number for a name": (("loss.use=3",), "[loss] use = 3: must be the name of a loss; known: ipfm, sid"),
    "table is a value": (("loss.alpha.x=3",), "[loss] alpha = {'x': 3}: must be a valid number"),
    "nan": (("loss.alpha=nan",), "[loss] alpha = nan: must be a finite number"),
    "t_max": (("noise.t_max=1001",), "[noise] t_max = 1001: must be less than or equal to 1000"),
    "steps": (("generator.steps=0",), "[generator] steps = 0: must be"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_one_error_is_one_line(case: str, recipe_file: Write, plugins: Plugins) -> None:
    sets, wanted = WRONG[case]
    found = errors(recipe_file(), plugins, *sets)
    assert len(found) == 1, found
    assert wanted in found[0]
    assert found[0].startswith(("--set", str(recipe_file())))


def test_errors_of_the_command_line_say_so(recipe_file: Write, plugins: Plugins) -> None:
    assert errors(recipe_file(), plugins, "train.batch=x") == ["--set train.batch=x: [train] batch = 'x': must be a valid integer"]


def test_a_value_where_a_table_belongs(recipe_file: Write, plugins: Plugins) -> None:
    path = recipe_file()
    path.write_text("generator = 3\n" + path.read_text())
    assert errors(path, plugins) == [f"{path}: [generator] is 3; it must be a table"]


def test_files_that_are_not_recipes(tmp_path: Path, plugins: Plugins) -> None:
    (tmp_path / "broken.toml").write_text("[train\nbatch = 3")
    (tmp_path / "binary.toml").write_bytes(b"\x80\x81\xff")
    assert "not valid TOML" in errors(tmp_path / "broken.toml", plugins)[0]
    assert "line 1, column 7" in errors(tmp_path / "broken.toml", plugins)[0]
    assert "not a text file" in errors(tmp_path / "binary.toml", plugins)[0]
    assert "this is a folder" in errors(tmp_path, plugins)[0]
    assert "no such recipe (did you mean 'quickstart'?); shipped: digits_d128" in errors("quikstart", plugins)[0]


def test_lay_over_merges_tables_and_replaces_values() -> None:
    base = {"a": {"x": 1, "y": 2}, "b": 3}
    assert lay_over(base, {"a": {"y": 5, "z": 6}, "b": {"c": 1}}) == {"a": {"x": 1, "y": 5, "z": 6}, "b": {"c": 1}}
    assert base == {"a": {"x": 1, "y": 2}, "b": 3}


def test_written_recipes_keep_values_that_are_hard_to_write() -> None:
    tables = {"a": {"inf": math.inf, "neg": -math.inf, "small": 1e-5, "path": 'C:\\new "x"', "list": [1.5, 2.0], "flag": True}}
    assert tomllib.loads(dumps(tables)) == tables


def test_every_setting_has_a_default_or_an_explanation() -> None:
    for config in (TrainConfig, LogConfig, EvalConfig):
        for name, field in config.model_fields.items():
            assert field.description, f"{config.__name__}.{name}"


def test_shipped_files_are_found_where_the_package_is() -> None:
    assert shipped() == ROOT / "recipes"


def test_a_resolved_recipe_can_be_measured_against_another_reference(tmp_path: Path, plugins: Plugins) -> None:
    """A resolved recipe states the reference once, so one --set changes it everywhere."""
    (tmp_path / "images").mkdir()
    (tmp_path / "again.toml").write_text(dumps(resolve("quickstart", plugins).tables()))
    again = resolve(str(tmp_path / "again.toml"), plugins)
    assert dumps(again.tables()) == (tmp_path / "again.toml").read_text()
    other = resolve(str(tmp_path / "again.toml"), plugins, [f"eval.reference={tmp_path / 'images'}"])
    assert isinstance(other, Recipe)
    assert {str(getattr(m.config, "reference", None)) for m in other.metrics} == {str(tmp_path / "images")}


@pytest.mark.parametrize(
    ("swap", "wanted"),
    [
        ("[swap]\nsid = 3\n", "[swap] sid = 3: must be a table"),
        ('[swap.sid]\nloss = "sid"\n', "[swap] sid.loss = 'sid': must be a table"),
        ('[swap."\\u001b[31m"]\na = 1\n', "[swap] ?[31m is no loss"),
        ('["\\u001b[31m"]\na = 1\n', "[?[31m] is no table of a recipe"),
    ],
)
def test_a_swap_that_is_not_a_table_is_an_error(swap: str, wanted: str, tmp_path: Path, plugins: Plugins) -> None:
    path = tmp_path / "r.toml"
    path.write_text((shipped() / "quickstart.toml").read_text().partition("[swap.sid]")[0] + swap)
    with pytest.raises(UserError) as caught:
        resolve(str(path), plugins, loss="sid")
    assert wanted in str(caught.value)


def test_a_swap_cannot_name_another_loss(tmp_path: Path, plugins: Plugins) -> None:
    path = tmp_path / "r.toml"
    text = (shipped() / "quickstart.toml").read_text()
    assert "loss = { alpha = 1.0 }" in text
    path.write_text(text.replace("loss = { alpha = 1.0 }", 'loss = { use = "ipfm", alpha = 1.0 }'))
    found = resolve(str(path), plugins, loss="sid")
    assert isinstance(found, Recipe)
    assert found.loss.name == "sid"


def test_a_noise_of_finite_D_under_an_edm_teacher_is_seen_before_anything_is_built(plugins: Plugins) -> None:
    with pytest.raises(UserError, match=r"\[noise\] use = 'electrostatic': has D = 128, but the teacher has D = inf"):
        resolve("quickstart", plugins, ["noise.use=electrostatic", "noise.D=128"], loss="sid")


def test_a_component_that_cannot_say_what_it_serves_breaks_no_hint(plugins: Plugins) -> None:
    """If a third party's `misfit` needs a setting without a default, the hint omits that component."""

    class Needs(NoiseConfig):
        width: float

        def misfit(self, D: float) -> str | None:
            return None if self.width > D else "is narrow"

    more = Plugins([*plugins.registered, Registered("noise", Component("needs", Needs, "nowhere:build", ""), "stranger", "1")])
    with pytest.raises(UserError, match="use electrostatic"):
        resolve("quickstart", more, ["noise.use=gaussian"])


@pytest.mark.parametrize("text", ["C:\\xray", "a\\x41", "\\u12", 'a\\e"q', "ü\\\\x"])
def test_a_complete_recipe_holds_any_text(text: str) -> None:
    tables = {"log": {"outdir": text, "trackers": [text]}}
    assert tomllib.loads(dumps(tables)) == tables


def test_a_recipe_of_thousands_of_settings_is_none(here: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    """It would take long to say what is wrong with each."""
    path = tmp_path / "many.toml"
    for text in ("".join(f"k{i} = 1\n" for i in range(30_000)), "".join(f"[swap.x{i}]\n" for i in range(30_000))):
        path.write_text("[train]\n" + text)
        done = here("check", path)
        assert done.returncode == 1 and "settings, and no recipe has more than 2,000" in done.stderr.splitlines()[0]
    path.write_text("[train]\nbatch = " + "1" * 5000)
    assert "it has a whole number of more than 64 bits" in here("check", path).stderr


@pytest.mark.parametrize("fewest", ["5", None, 5.0])
def test_a_metric_that_does_not_know_how_many_images_it_needs(
    fewest: object, recipe_file: Callable[..., Path], plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SlicedWassersteinConfig, "fewest_images", lambda self: fewest)
    path = recipe_file(append='metrics = ["sliced_wasserstein"]\nreference = "digits"\n')
    with pytest.raises(UserError, match=r"metric 'sliced_wasserstein': fewest_images\(\) must give a whole number, not a "):
        resolve(str(path), plugins)


def test_a_metric_is_named_once(recipe_file: Callable[..., Path], plugins: Plugins) -> None:
    with pytest.raises(UserError, match=r"\[eval\] metrics names 'frechet' more than once"):
        resolve(str(recipe_file()), plugins, ('eval.metrics=["frechet", "sliced_wasserstein", "frechet"]',))


def test_a_mark_that_some_editors_write_first_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[train]\nlr = 0.5\n", encoding="utf-8-sig")
    assert read_tables(tmp_path / "a.toml") == {"train": {"lr": 0.5}}
