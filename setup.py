"""The compiled parts are the engine and the fused lookup; without them, plain torch steps in."""

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
        ),
        Extension(
            "embedcomp.served._lookup",
            ["embedcomp/served/lookup.cpp"],
            language="c++",
            # products and sums are rounded as torch rounds them
            extra_compile_args=["-O3", "-std=c++17", "-ffp-contract=off"],
            optional=True,
        ),
    ]
)
