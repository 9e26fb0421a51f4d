"""What is built: the scoring engine, without which torch scores, and the protocol's code."""

import runpy
import sys
from pathlib import Path
from textwrap import shorten

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import BaseError, CCompilerError

NOT_BUILT = """
embedcomp: THE COMPILED ENGINE WAS NOT BUILT ({error}).
embedcomp works without it, but torch scores, many times slower, and some methods are not offered.
To have it, install a C++17 compiler (Debian: apt-get install g++; or name one in CXX) and run
pip install again; `embedcomp inspect ARTIFACT` says what scores an artifact.
"""


class BuildEngine(build_ext):
    """Says that the engine could not be built, and leaves none of other sources in its place.

    pip shows what a build prints only with -v; embedcomp says it again when it first scores.
    """

    def run(self):
        self.failed = False
        super().run()
        if self.failed and self.inplace:
            for old in Path("embedcomp/kernels").glob("_engine*.so"):
                old.unlink()

    def build_extension(self, ext):
        try:
            super().build_extension(ext)
        except (BaseError, CCompilerError) as error:
            self.failed = True
            print(NOT_BUILT.format(error=shorten(str(error), 200)), file=sys.stderr)
            raise  # setuptools goes on, since the extension is optional


class BuildProtocol(build_py):
    """Generates the messages' code before packages are looked for."""

    def run(self):
        runpy.run_path("proto/build.py")["build"]()
        self.data_files = self._get_data_files()  # the generated ones are among them now
        super().run()


setup(
    cmdclass={"build_ext": BuildEngine, "build_py": BuildProtocol},
    ext_modules=[
        Extension(
            "embedcomp.kernels._engine",
            [f"embedcomp/kernels/{name}.cpp" for name in ("engine", "known", "requests")],
            depends=[
                f"embedcomp/kernels/{name}"
                for name in (
                    "engine.h",
                    "known.h",
                    "requests.h",
                    "slots.h",
                    "kernels.inc",
                    "slots.inc",
                )
            ],
            language="c++",
            extra_compile_args=["-O3", "-std=c++17", "-Wno-psabi"],
            optional=True,
        )
    ],
)
