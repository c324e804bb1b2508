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
        "models",
        "releases",
        "data",
        "registration",
        "distributed",
    },
    {"protocols", "checkpoints", "states"},
    {"actions", "conditions", "contexts", "metrics", "viz", "prompts"},
    {"rewards", "envs", "vector_env"},
    {"single_env", "wrappers"},
    {"make", "rollout", "integrations", "closed_loop"},
    {"evaluation", "bench", "check", "guard"},
    {"zoo", "parity"},
    {"cli"},
]
"""Parts of genenv from the bottom; each may import its own level's parts and those below."""

FREE_OF_GYMNASIUM = {
    "rng",
    "schedules",
    "filters",
    "solvers",
    "models",
    "data",
    "fields",
    "protocols",
    "actions",
    "conditions",
    "contexts",
    "states",
    "envs",
    "rewards",
    "metrics",
}
FILES = [path.relative_to(ROOT) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def level(part):
    return next(i for i, parts in enumerate(LEVELS) if part in parts)


def forbidden_imports(path, source):
    """Returns the modules that a file at `path` may not import."""
    modules = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            modules += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    package, part = path.parts[0], path.with_suffix("").parts[1]
    wrong = [m for m in modules if m.split(".")[0] in PACKAGES.keys() - PACKAGES[package] - {package}]
    if package == "genenv" and part != "__init__":
        known = {name for parts in LEVELS for name in parts}
        inner = [(m, m.split(".")[1]) for m in modules if m.startswith("genenv.")]
        wrong += [m for m, other in inner if other in known and level(other) > level(part)]
        if part in FREE_OF_GYMNASIUM:
            wrong += [m for m in modules if m.split(".")[0] == "gymnasium"]
    return wrong


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_downwards(path):
    assert forbidden_imports(path, (ROOT / path).read_text()) == []


def test_every_part_of_the_package_has_a_level():
    parts = {path.with_suffix("").parts[1] for path in FILES if path.parts[0] == "genenv"} - {"__init__"}
    assert parts - {name for level_ in LEVELS for name in level_} == set()


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("genenv/rng.py", "import agents.adagen"),
        ("genenv/rng.py", "from genenv.schedules import UNIT\nfrom genenv.vector_env import GenVectorEnv"),
        ("genenv/models/maskgit.py", "def f():\n    from genenv import checkpoints"),
        ("genenv/envs/maskgit.py", "import gymnasium as gym"),
        ("genenv/rewards/loo_fid.py", "import genenv.make"),
        ("agents/adagen.py", "from baselines import static"),
        ("baselines/static.py", "import agents"),
    ],
)
def test_a_planted_upward_import_is_flagged(path, source):
    assert forbidden_imports(Path(path), source) != []
