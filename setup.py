"""The one compiled part is the fused lookup; where it cannot be built, plain torch steps in."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "embedcomp.served._lookup",
            ["embedcomp/served/lookup.cpp"],
            language="c++",
            # products and sums are rounded as torch rounds them
            extra_compile_args=["-O3", "-std=c++17", "-ffp-contract=off"],
            optional=True,
        )
    ]
)
