"""Compares genenv with reference vectors of the official implementations, quantity by quantity.

python -m genenv.parity DIR

DIR holds one folder for each family; a folder's name says what it is. Prints `name  quantity  max_abs_err  tolerance
ok|FAIL` and exits with 1 where anything fails, or a folder, a setting or a tensor is not known.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from genenv.parity.discriminator import check_adanat_disc
from genenv.parity.fixture import Fixture, Result, failure
from genenv.parity.llamagen import check_llamagen, check_llamagen_vq
from genenv.parity.maskgit import check_maskgit, check_maskgit_vqgan
from genenv.parity.metrics import check_fid
from genenv.parity.ode import check_autoencoder_kl, check_dit, check_dpm_solver, check_sit
from genenv.parity.policy import check_policy
from genenv.parity.shapes import check_shapes
from genenv.parity.var import check_var, check_var_vqvae

CHECKS: dict[str, Callable[[Fixture], Iterator[Result]]] = {
    "maskgit": check_maskgit,
    "maskgit_vqgan": check_maskgit_vqgan,
    "var": check_var,
    "var_vqvae": check_var_vqvae,
    "llamagen": check_llamagen,
    "llamagen_vq": check_llamagen_vq,
    "dit": check_dit,
    "sit": check_sit,
    "autoencoder_kl": check_autoencoder_kl,
    "dpm_solver": check_dpm_solver,
    "policy_maskgit": check_policy,
    "policy_var": check_policy,
    "policy_dit": check_policy,
    "policy_sit": check_policy,
    "adanat_disc": check_adanat_disc,
    "fid": check_fid,
}
SHAPES = "real_state_dict_shapes"


def results(folder: Path) -> Iterator[Result]:
    """Yields what comes out for one folder; an error is a failure of the folder."""
    try:
        if folder.name == SHAPES:
            yield from check_shapes(folder)
        elif folder.name in CHECKS:
            fixture = Fixture(folder)
            yield from CHECKS[folder.name](fixture)
            yield from fixture.unused()
        else:
            yield failure("unknown folder")
    except Exception as error:  # the other folders are still worth a look
        reason = " ".join(str(error).split())
        yield failure(f"{type(error).__name__}: {reason}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints every comparison and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m genenv.parity", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="holds a folder for each family")
    folder = parser.parse_args(arguments).folder
    if not folder.is_dir():
        print(f"genenv.parity: {folder} is not a folder", file=sys.stderr)
        return 2
    families = sorted(path for path in folder.iterdir() if path.is_dir())
    if not families:
        print(f"genenv.parity: {folder} holds no folders to check", file=sys.stderr)
        return 2
    failed = False
    for family in families:
        for result in results(family):
            verdict = "ok" if result.ok else "FAIL"
            numbers = f"{result.max_abs_err:.2e}  {result.tolerance:g}"
            print(f"{family.name}  {result.quantity}  {numbers}  {verdict}", flush=True)
            failed |= not result.ok
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
