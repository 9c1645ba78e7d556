"""What must hold of a release, tried as a stranger would: built, installed elsewhere, used there.

    python .ci/release_check.py [--python PYTHON] [--lowest | --only-build]

The wheel and the sdist are built and looked through. The wheel goes into an environment of its own,
outside the repository, with the constraints of constraints.txt (``--lowest``: with the oldest
versions that pyproject.toml allows). There the demo runs on the digits, an evaluation, every
example, and each thing that needs an extra says which. Afterwards the environment is deleted. It
takes some 6 GB of disk while it lasts, most of it torch's own libraries for GPUs.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = Path(sys.executable).parent
PARTS = (
    "tests/core/test_updates.py", "tests/core/test_cure.py", "tests/core/test_draws.py",
    "tests/core/test_lift.py", "tests/models/test_families.py",
    "tests/checkpoints/test_format.py", "tests/checkpoints/test_loading.py",
    "tests/checkpoints/test_export.py", "tests/data/test_own_files.py",
    "tests/running/test_options.py", "tests/report", "tests/test_cli.py",
    # It plays a clone that is not installed, and this is none.
    "--deselect", "tests/test_cli.py::test_version",
)  # fmt: skip
"""Of the suite, for the oldest versions: what each dependency is used for, without training."""
EXTRAS = {
    "denoising": ["apply", "denoising", "RUN", "--examples", "4"],
    "minimum-norm": ["minimum-norm", "RUN", "--examples", "4"],
    "autoattack": [
        "evaluate", "RUN", "--constraint", "l2", "--epsilon", "0.5", "--autoattack",
        "--examples", "4",
    ],
    "study": ["apply", "sketch", "RUN", "--judge", "inception", "--examples", "4"],
    "robustbench": ["evaluate", "robustbench:Carmon2019Unlabeled", "--examples", "4"],
    "corruptions": ["corruptions", "cifar10-linf-tiny", "--examples", "4"],
    "wandb": ["cure-train", "--dataset", "digits", "--epochs", "1", "--log", "wandb"],
}  # fmt: skip
"""What is asked for without its extra, and must end in one line that names it.

Not tensorboard: robustness brings tensorboardX.
"""


def run(*words: object, cwd: Path, may_fail: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command by itself: no PYTHONPATH leads back into the repository."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    began = time.monotonic()
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    shown = " ".join(str(word).replace(str(ROOT), ".") for word in words)
    print(f"{time.monotonic() - began:6.1f} s  {shown[:110]}", flush=True)
    if done.returncode and not may_fail:
        raise SystemExit(f"{shown} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done


def require(holds: bool, what: str) -> None:
    """End the check unless something holds."""
    if not holds:
        raise SystemExit(f"release-check: {what}")


def one_version() -> str:
    """Return the version, which the changelog and the citation must know, too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version: str = project["version"]
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.M)
    require(cited is not None and cited[1] == version, "CITATION.cff has another version")
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    require(f"## {version}" in log or "## Unreleased" in log, f"CHANGELOG.md lacks {version}")
    return version


def build(folder: Path) -> tuple[Path, Path]:
    """Build the wheel (from the sdist) and the sdist; return both."""
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def look_through(wheel: Path, sdist: Path) -> None:
    """Require that all that is tracked is there, and nothing else."""
    said = run("git", "ls-files", "-z", cwd=ROOT).stdout
    tracked = {name for name in said.split("\0") if name}
    shipped = "checkpoints/"
    own = {
        f"funcrobust/_shipped/{name.removeprefix(shipped)}" if name.startswith(shipped) else name
        for name in tracked
        if name.startswith(("funcrobust/", shipped))
    }
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    require(inside == own, f"the wheel differs from what is tracked in {sorted(inside ^ own)[:9]}")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()} - {"PKG-INFO"}
    require(inside == tracked, f"the sdist differs in {sorted(inside ^ tracked)[:9]}")
    print(f"{wheel.name}: {len(own)} files, {wheel.stat().st_size / 1e6:.1f} MB;", end=" ")
    print(f"{sdist.name}: {len(tracked)} files, {sdist.stat().st_size / 1e6:.1f} MB")


def install(wheel: Path, python: str, folder: Path, *, lowest: bool) -> Path:
    """Make an environment with the wheel; return its folder of programs."""
    place = folder / "venv"
    uv = TOOLS / "uv"
    run(uv, "venv", "--quiet", "--python", python, place, cwd=folder)
    programs = place / "bin"
    pip = (uv, "pip", "install", "--quiet", "--python", programs / "python")
    if lowest:
        oldest = folder / "lowest.txt"
        run(
            uv, "pip", "compile", "--quiet", "--resolution", "lowest-direct", "--python", python,
            ROOT / "pyproject.toml", "--output-file", oldest, cwd=folder,
        )  # fmt: skip
        tools = ("pytest", "pytest-xdist", "pytest-randomly", "hypothesis")
        run(*pip, "-r", oldest, wheel, *tools, cwd=folder)
    else:
        run(*pip, "-c", ROOT / "constraints.txt", wheel, cwd=folder)
    size = sum(p.lstat().st_size for p in place.rglob("*") if not p.is_dir())
    print(f"the environment takes {size / 1e9:.1f} GB")
    return programs


def use(programs: Path, folder: Path, version: str) -> None:
    """Do what a stranger does first, in a folder of their own."""
    own = folder / "elsewhere"
    own.mkdir()
    program = programs / "funcrobust"
    require(run(program, "--version", cwd=own).stdout.strip() == version, "another --version")
    where = run(programs / "python", "-c", "import funcrobust; print(funcrobust.__file__)", cwd=own)
    require("site-packages" in where.stdout, f"what is imported lies in {where.stdout.strip()}")
    run(program, "demo", "--dataset", "digits", cwd=own)
    (trained,) = (path.relative_to(own) for path in (own / "runs").glob("*-cure-train"))
    page = own / "page.html"
    run(program, "evaluate", trained, "--examples", "100", "--page", page, cwd=own)
    require(page.exists(), "evaluate left no page")
    for name, words in EXTRAS.items():
        words = [str(trained) if word == "RUN" else word for word in words]
        done = run(program, *words, cwd=own, may_fail=True)
        line = f'pip install "funcrobust[{name}]"'
        require(
            done.returncode == 2 and line in done.stderr and len(done.stderr.splitlines()) <= 2,
            f"{' '.join(words)} does not say {line}: {done.stderr[-500:]}",
        )
    shutil.copytree(ROOT / "examples", own / "examples")
    for example in sorted((own / "examples").glob("*.py")):
        done = run(programs / "python", example, cwd=own)
        drawn = (own / f"{example.stem}.png").exists()
        require(drawn or "pip install" in done.stdout, f"{example.name} draws nothing")


def main() -> None:
    """Check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python", default=sys.executable, help="of the environment")
    parser.add_argument("--lowest", action="store_true", help="the oldest versions, some tests")
    parser.add_argument("--only-build", action="store_true", help="no environment")
    given = parser.parse_args()
    version = one_version()
    with tempfile.TemporaryDirectory(prefix="release-") as name:
        folder = Path(name)
        wheel, sdist = build(folder)
        look_through(wheel, sdist)
        if given.only_build:
            return
        programs = install(wheel, given.python, folder, lowest=given.lowest)
        if given.lowest:
            # The program, not the module: that would put the repository's own code first.
            tests = run(programs / "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", *PARTS,
                        cwd=ROOT)  # fmt: skip
            print(tests.stdout.splitlines()[-1])
        else:
            use(programs, folder, version)
    print(f"release-check: {version} holds")


if __name__ == "__main__":
    main()
