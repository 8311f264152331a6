"""Builds the compiled half, src/fastsock/*.pyx, into the fastsock package.

FASTSOCK_BUILD chooses how: ``release`` (default), ``strict`` (every warning is an
error), ``debug`` (-O0 -g, assertions, bounds checks) or ``sanitize`` (address and
undefined-behaviour sanitizers). CONTRIBUTING.md shows each one in use.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

WARNINGS = ["-Wall", "-Wextra"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
BUILDS = {
    "release": (["-O2", "-g0"], ["-Wl,-s"]),
    "strict": (["-O2", "-g0", "-Werror"], ["-Wl,-s"]),
    "debug": (["-O0", "-g3", "-Werror", "-UNDEBUG"], []),
    "sanitize": (["-O1", "-g", "-Werror", "-fno-omit-frame-pointer", *SANITIZERS], SANITIZERS),
}

build = os.environ.get("FASTSOCK_BUILD", "release")
if build not in BUILDS:
    raise SystemExit(f"FASTSOCK_BUILD={build!r}: choose one of {', '.join(BUILDS)}")
compile_args, link_args = BUILDS[build]

extensions = [
    Extension(
        f"fastsock.{source.stem}",
        [str(source)],
        include_dirs=["src/fastsock"],
        depends=["src/fastsock/_compat.h"],
        extra_compile_args=[*WARNINGS, *compile_args],
        extra_link_args=link_args,
    )
    for source in sorted(Path("src/fastsock").glob("*.pyx"))
]

setup(
    ext_modules=cythonize(
        extensions,
        include_path=["src"],
        build_dir=f"build/cython-{build}",
        compiler_directives={
            "language_level": "3",
            "freethreading_compatible": True,
            "boundscheck": build in ("debug", "sanitize"),
            "wraparound": False,
            "initializedcheck": False,
            "cdivision": True,
            # Plain method descriptors, which CPython calls faster; inspect reads their signatures.
            "binding": False,
            "embedsignature": True,
            "embedsignature.format": "clinic",
            "auto_pickle": False,
        },
    ),
)
