import json
import os
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import genenv
from genenv.checkpoints import MANIFEST, sha256
from genenv.tiers import backbone_folder, licences, tiers
from genenv.tiers.digits import DIGITS

ROOT = Path(__file__).parents[1]


def python(*arguments, **kwargs):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_no_heavy_library():
    code = "import sys, genenv; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = eval(python("-W", "error", "-c", code))
    assert "gymnasium" in loaded
    assert not {"torch", "sklearn", "scipy", "matplotlib", "safetensors"} & set(loaded)


def test_gymnasium_finds_an_id_by_its_module_and_making_it_loads_no_optional_library():
    code = (
        "import sys, gymnasium; env = gymnasium.make('genenv:AdaGen/MaskGIT-v0', reward='none');"
        "print(env.reset(seed=0)[0]['tokens'].shape); env = gymnasium.make_vec('AdaGen/MaskGIT-v0', num_envs=2);"
        "env.reset(seed=0); [env.step(env.action_space.sample()) for _ in range(4)];"
        "print(sorted({m.split('.')[0] for m in sys.modules}))"
    )
    shape, loaded = map(eval, python("-W", "error", "-c", code).splitlines())
    assert shape == (4, 4)
    optional = {"matplotlib", "torch_fidelity", "stable_baselines3", "tyro", "rich", "tensorboard", "cma"}
    optional |= {"timm", "transformers", "open_clip"}
    assert not optional & set(loaded)


def test_the_shipped_weights_are_small_licensed_and_those_of_the_manifest():
    folder = backbone_folder("digits")
    inner = [path for part in DIGITS.folder_parts for path in (folder / part).iterdir()]
    files = {path.relative_to(folder).as_posix(): path for path in [*folder.glob("*.safetensors"), *inner]}
    assert {f"{part}.safetensors" for part in DIGITS.parts} <= set(files)
    assert {"clip/model.safetensors", "hpsv2/hpsv2.pt"} <= set(files)
    hashes = {name: sha256(path) for name, path in files.items()}
    assert json.loads((folder / MANIFEST).read_text()) == {"tier": "digits"} | hashes
    assert max(path.stat().st_size for path in files.values()) < 4_000_000
    assert (folder / "CARD.md").is_file()


@pytest.mark.parametrize("backbone", [name for tier in tiers().values() for name in tier.backbones])
def test_the_weights_of_every_backbone_have_a_licence(backbone):
    assert all(licences(backbone).values())


def test_versions_agree():
    project = (ROOT / "pyproject.toml").read_text()
    assert f'\nversion = "{genenv.__version__}"\n' in project
    assert f"\nversion: {genenv.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_constraints_are_plain_pins():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, separator, version = line.partition("==")
        assert name
        assert separator
        assert version.replace(".", "").isdigit(), line


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of this checkout, so that nothing is left behind in it."""
    copy = tmp_path_factory.mktemp("copy") / "checkout"
    copy.mkdir()
    for name in ("genenv", "agents", "baselines", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE.md"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout):
    python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(checkout.parent), str(checkout))
    (path,) = checkout.parent.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_its_assets_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    roots = {name.split("/")[0] for name in names}
    assert roots == {"genenv", f"genenv-{genenv.__version__}.dist-info"}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "genenv").rglob("*")
        if path.suffix in (".py", ".safetensors", ".json", ".md", ".txt") or path.name == "py.typed"
    }
    assert wanted <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_unpacked_wheel_makes_environments_outside_the_checkout(wheel, tmp_path):
    folder = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(folder)
    environment = os.environ | {"PYTHONPATH": str(folder)}
    code = (
        "import sys, genenv, gymnasium; from genenv.cli import main; print(genenv.__file__);"
        "gymnasium.make('AdaGen/MaskGIT-v0', reward='none').reset(seed=0); sys.exit(main(['list']))"
    )
    place, listed = python("-c", code, cwd=tmp_path, env=environment).split("\n", 1)
    assert place == str(folder / "genenv" / "__init__.py")
    assert "AdaGen/MaskGIT-v0" in listed


def test_an_editable_install_finds_the_agents_and_baselines_from_anywhere(checkout, tmp_path):
    folder, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = f"import setuptools.build_meta as backend; backend.build_editable({str(tmp_path)!r})"
    python("-c", code, cwd=checkout)
    (path,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(path).extractall(folder)
    files = [path for name in ("genenv", "agents", "baselines") for path in (checkout / name).glob("*.py")]
    names = [f"{path.parent.name}.{path.stem}" for path in files]
    code = (
        f"import site; site.addsitedir({str(folder)!r})\n"
        "from importlib.util import find_spec\n"
        "import agents.adagen, baselines.static\n"
        f"print(*(find_spec(name).origin for name in {names}))"
    )
    # without the site module, so that the libraries are found but no other editable install
    libraries = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *site.getsitepackages()])}
    found = python("-S", "-c", code, cwd=elsewhere, env=libraries).split()
    assert found == [str(path) for path in files]
