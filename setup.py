"""The one compiled part is the scoring engine; where it cannot be built, torch scores."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "embedcomp.scoring._engine",
            ["embedcomp/scoring/engine.cpp"],
            depends=["embedcomp/scoring/engine.h", "embedcomp/scoring/kernels.inc"],
            language="c++",
            extra_compile_args=["-O3", "-std=c++17", "-Wno-psabi"],
            optional=True,
        )
    ]
)
