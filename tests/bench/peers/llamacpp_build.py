"""llama.cpp's programs, built from the sources in the sdist of `llama-cpp-python`. Does not run them."""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
from pathlib import Path

from tests.bench.peers.commands import ROOT, AbsentError, run, venv

SOURCE_TIMEOUT_S = 300.0
BUILD_TIMEOUT_S = 2400.0  # the server alone takes minutes on two cores
REQUIREMENT = Path(__file__).with_name("llamacpp.txt")
BENCHES = ("llama-bench", "llama-batched-bench", "ggml-rpc-server")
SERVER = "llama-server"
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DGGML_RPC=ON",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=ON",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
)


def llamacpp(*programs: str) -> Path:
    """Return the folder with these programs of llama.cpp and its libraries; fetch and build what is missing.

    Raises AbsentError if that fails, for example without a C++ compiler.
    """
    build = ROOT / "llama.cpp" / "build"
    if not all((build / "bin" / program).is_file() for program in programs):
        _check_compiler()
        print(f"building {', '.join(programs)} of llama.cpp in {build}; this takes minutes", flush=True)
        _build(_sources(), build, programs)
    return (build / "bin").absolute()


def _check_compiler() -> None:
    if not any(map(shutil.which, filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")))):
        raise AbsentError("llama.cpp is built from source and there is no C++ compiler here; install g++ or clang")


def _sources() -> Path:
    """Return llama.cpp's own folder of the sdist."""
    sources = ROOT / "llama.cpp" / "sources"
    if not (sources / "CMakeLists.txt").is_file():
        archive = sdist()
        inside = f"{archive.name.removesuffix('.tar.gz')}/vendor/llama.cpp"
        unpacked = ROOT / "llama.cpp" / "unpacked"
        with tarfile.open(archive) as tar:
            members = [member for member in tar if member.name.startswith(inside)]
            tar.extractall(unpacked, members, filter="data")
        (unpacked / inside).rename(sources)
        shutil.rmtree(unpacked)
    return sources


def sdist() -> Path:
    """Download the sdist with pip, at the version and hash of llamacpp.txt."""
    folder = ROOT / "sdist"
    if not list(folder.glob("llama_cpp_python-*.tar.gz")):
        pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
        wanted = ["--no-binary", ":all:", "--require-hashes", "--requirement", str(REQUIREMENT), "--dest", str(folder)]
        run([*pip, *wanted], ROOT / "sdist.log", SOURCE_TIMEOUT_S)
    (archive,) = folder.glob("llama_cpp_python-*.tar.gz")
    return archive


def _build(sources: Path, build: Path, programs: tuple[str, ...]) -> None:
    cmake, ninja = _tool("cmake"), _tool("ninja")
    folders = ["-S", str(sources), "-B", str(build), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    run([cmake, *folders, *OPTIONS], ROOT / "llama.cpp" / "configure.log", SOURCE_TIMEOUT_S)
    run([ninja, "-C", build, *programs], ROOT / "llama.cpp" / "build.log", BUILD_TIMEOUT_S)


def _tool(name: str) -> Path:
    """Return the system's program, or that of the wheel of this name."""
    found = shutil.which(name)
    return Path(found) if found else venv("build-tools", ["cmake", "ninja"]).with_name(name)
