import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"genenv": set(), "agents": {"genenv"}, "baselines": {"genenv"}}
"""Top-level package -> the others that it may import."""

LEVELS = [
    {
        "rng",
        "fields",
        "schedules",
        "filters",
        "solvers",
        "transitions",
        "grids",
        "models",
        "releases",
        "data",
        "registration",
        "distributed",
        "progress",
        "ranges",
        "console",
        "json_text",
    },
    {"protocols", "checkpoints", "states"},
    {"tiers"},
    {"actions", "conditions", "contexts", "metrics", "viz", "prompts", "export", "scopes", "pipelines"},
    {"rewards", "envs", "vector_env"},
    {"tiers.digits", "tiers.imagenet", "tiers.gaussian_mixture", "tiers.diffusers"},
    {"single_env", "wrappers"},
    {"make", "rollout", "policies", "integrations", "closed_loop"},
    {"evaluation", "bench", "check", "guard"},
    {"zoo", "parity"},
    {"cli"},
]
"""Parts of genenv from the bottom; each may import its own level's parts and those below. `tiers` finds the tiers that
come with the package by name when one is asked for, as Gymnasium does its environments."""

FREE_OF_GYMNASIUM = {
    "rng",
    "schedules",
    "filters",
    "solvers",
    "grids",
    "models",
    "data",
    "fields",
    "protocols",
    "actions",
    "conditions",
    "contexts",
    "scopes",
    "states",
    "envs",
    "rewards",
    "metrics",
    "json_text",
    "pipelines",
}
FILES = [path.relative_to(ROOT) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def level(module):
    """Returns the level of a module of genenv, named from inside the package; None where it has none."""
    names = {name: i for i, parts in enumerate(LEVELS) for name in parts}
    parts = module.split(".")
    return next((names[n] for n in (".".join(parts[:2]), parts[0]) if n in names), None)


def name_of(path):
    """Returns the dotted name of a file."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path, source):
    """Returns the modules that a file imports, with the names it takes from them, wherever in the file."""
    modules = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            modules += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return modules


def forbidden_imports(path, source):
    """Returns the modules that a file at `path` may not import."""
    modules = imported(path, source)
    package, part = path.parts[0], path.with_suffix("").parts[1]
    wrong = [m for m in modules if m.split(".")[0] in PACKAGES.keys() - PACKAGES[package] - {package}]
    if package == "genenv" and part != "__init__":
        own = level(name_of(path).removeprefix("genenv."))
        inner = [(m, level(m.removeprefix("genenv."))) for m in modules if m.startswith("genenv.")]
        wrong += [m for m, other in inner if other is not None and other > own]
        if part in FREE_OF_GYMNASIUM:
            wrong += [m for m in modules if m.split(".")[0] == "gymnasium"]
    return wrong


def circle(sources):
    """Returns modules that import each other in a circle, the first one again at the end; [] where there are none.

    Args:
        sources: {path: text} of files.
    """
    names = {name_of(path) for path in sources}
    imports = {
        name_of(path): sorted({m for m in imported(path, source) if m in names} - {name_of(path)})
        for path, source in sources.items()
    }
    done = set()

    def walk(module, trail):
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module in done:
            return []
        found = next(filter(None, (walk(other, [*trail, module]) for other in imports[module])), [])
        done.add(module)
        return found

    return next(filter(None, (walk(module, []) for module in imports)), [])


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_downwards(path):
    assert forbidden_imports(path, (ROOT / path).read_text()) == []


def test_every_part_of_the_package_has_a_level():
    parts = {path.with_suffix("").parts[1] for path in FILES if path.parts[0] == "genenv"} - {"__init__"}
    assert {part for part in parts if level(part) is None} == set()


def test_no_modules_import_each_other_in_a_circle():
    assert circle({path: (ROOT / path).read_text() for path in FILES}) == []


@pytest.mark.parametrize(
    "sources",
    [
        {
            "genenv/zoo/a.py": "from genenv.zoo import b",
            "genenv/zoo/b.py": "def f():\n    import genenv.zoo.a",
        },
        {
            "agents/a.py": "from agents.b import x",
            "agents/b.py": "import agents.c",
            "agents/c.py": "from agents import a",
        },
        {"genenv/t/__init__.py": "import genenv.t.x", "genenv/t/x.py": "from genenv.t import y"},
    ],
)
def test_a_planted_circle_is_flagged(sources):
    found = circle({Path(path): source for path, source in sources.items()})
    assert found[0] == found[-1]
    assert len(found) == len(sources) + 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("genenv/rng.py", "import agents.adagen"),
        ("genenv/rng.py", "from genenv.schedules import UNIT\nfrom genenv.vector_env import GenVectorEnv"),
        ("genenv/models/maskgit.py", "def f():\n    from genenv import checkpoints"),
        ("genenv/envs/maskgit.py", "import gymnasium as gym"),
        ("genenv/rewards/loo_fid.py", "import genenv.make"),
        ("genenv/tiers/__init__.py", "from genenv.tiers import digits"),
        ("genenv/metrics/judge.py", "from genenv.tiers.digits import DIGITS"),
        ("agents/adagen.py", "from baselines import static"),
        ("baselines/static.py", "import agents"),
    ],
)
def test_a_planted_upward_import_is_flagged(path, source):
    assert forbidden_imports(Path(path), source) != []
