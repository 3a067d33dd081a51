"""Builds fast_odometry against the dora-state that is installed: pip install --no-build-isolation ."""

from Cython.Build import cythonize
from setuptools import Extension, setup

import dora_state

setup(
    ext_modules=cythonize(
        [Extension("fast_odometry", ["fast_odometry.pyx"], include_dirs=[dora_state.get_include()])]
    )
)
