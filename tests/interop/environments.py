"""Makes what each client library needs, once, in the cache outside the checkout, from the pinned versions beside this file.

Without a way to a registry and with a cold cache a client is skipped, loudly; with a way there, what does not build has failed.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
HOME_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
CACHE = Path(os.environ.get("SEALMQ_CACHE") or HOME_CACHE / "sealmq")
BUILD_SECONDS_MAX = 1800
GO_PACKAGE = Path("/usr/share/gocode/src/github.com/rabbitmq/amqp091-go")


class Missing(Exception):
    """Cannot be had here: the reason and the remedy."""


def call(command, **options):
    """Runs it and gives its output; a failure carries its last lines."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=BUILD_SECONDS_MAX, **options
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: " + " | ".join(done.stdout.splitlines()[-5:]))
    return done.stdout


@contextlib.contextmanager
def from_registry(name, probe):
    """Tells a registry that cannot be reached from a package that cannot be built, by asking it something small."""
    try:
        yield
    except RuntimeError:
        if subprocess.run(probe, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", timeout=120).returncode != 0:
            raise Missing(f"{name} cannot be reached from here and the cache is cold") from None
        raise


@contextlib.contextmanager
def made_once(kind, *sources):
    """A folder of the cache that is named by its sources, and whether it is still to be filled; one process at a time."""
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    folder = CACHE / f"interop-{kind}-{digest}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        is_ready = (folder / ".ready").exists()
        if not is_ready:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        yield folder, not is_ready
        (folder / ".ready").touch()


def debian(packages):
    """Installs what is missing where it may: root on Debian. `packages` maps a command or path to its package."""
    missing = [package for needed, package in packages.items() if not (shutil.which(needed) or Path(needed).exists())]
    if not missing:
        return
    if os.getuid() != 0 or not shutil.which("apt-get"):
        raise Missing(f"install with: sudo apt-get install {' '.join(missing)}")
    print(f"installing {' '.join(missing)}", file=sys.stderr, flush=True)
    try:
        call(["apt-get", "update", "-qq"])
        call(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"})
    except RuntimeError as error:
        raise Missing(f"apt-get cannot install {' '.join(missing)}: {error}") from None


def python(requirements):
    """The interpreter of a Python environment."""
    with from_registry("PyPI", [sys.executable, "-m", "pip", "index", "versions", "pytest"]):
        done = subprocess.run(
            [ROOT / "scripts/venv", sys._base_executable, HERE / "requirements" / f"{requirements}.txt"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=BUILD_SECONDS_MAX,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"scripts/venv: {done.stderr[-500:]}")
    return done.stdout.strip()


def node():
    """For NODE_PATH: the folder with the packages of node/package-lock.json."""
    debian({"node": "nodejs", "npm": "npm"})
    with from_registry("npm's registry", ["npm", "view", "amqplib", "version"]):
        with made_once("node", HERE / "node/package.json", HERE / "node/package-lock.json") as (folder, is_new):
            if is_new:
                for file in ("package.json", "package-lock.json"):
                    shutil.copy(HERE / "node" / file, folder)
                call(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=folder)
    return folder / "node_modules"


def go():
    """The program of go/main.go, built with Debian's amqp091-go."""
    debian({"go": "golang-go", str(GO_PACKAGE): "golang-github-rabbitmq-amqp091-go-dev"})
    source = HERE / "go/main.go"
    with made_once("go", source, GO_PACKAGE / "connection.go") as (folder, is_new):
        if is_new:
            settings = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOFLAGS": ""}
            call(["go", "build", "-o", folder / "interop-go", source], env=os.environ | settings)
    return folder / "interop-go"


def rust():
    """The folder with the programs of rust/."""
    crate = HERE / "rust"
    with from_registry("crates.io", ["cargo", "info", "--quiet", "lapin"]):
        with made_once("rust", crate / "Cargo.toml", crate / "Cargo.lock", *sorted(crate.glob("src/*.rs"))) as (folder, is_new):
            if is_new:
                # What the dependencies built is kept for the next change of the sources.
                target = CACHE / "interop-rust-build"
                call(["cargo", "build", "--quiet", "--locked"], cwd=crate, env=os.environ | {"CARGO_TARGET_DIR": str(target)})
                for program in ("interop-lapin", "interop-amqprs"):
                    shutil.copy(target / "debug" / program, folder)
    return folder


def amqp_tools():
    debian({"amqp-publish": "amqp-tools"})
