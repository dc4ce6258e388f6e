"""Packaging of gsopt. Compiles the CPU kernel on the way; without a C compiler it installs all the same."""

import importlib.util
import sys
from pathlib import Path

from setuptools import Distribution, Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def _load_kernel_build():
    """gsopt/native/build.py by its path: the package itself cannot be imported before torch is there."""
    spec = importlib.util.spec_from_file_location("kernel_build", ROOT / "gsopt/native/build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildKernel(build_ext):
    """Compiles every variant of the kernel into the package (in place for an editable install)."""

    def run(self) -> None:
        kernel = _load_kernel_build()
        folder = ROOT if self.inplace or self.editable_mode else Path(self.build_lib)
        try:
            for path in kernel.compile_all(folder / "gsopt" / "native"):
                print(f"built {path.name}")
        except (kernel.NoCompiler, kernel.CompilerFailed) as error:
            print(f"warning: {error}\nInstalling without the CPU kernel: CUDA works.", file=sys.stderr)

    def get_outputs(self) -> list[str]:
        folder = Path(self.build_lib) / "gsopt" / "native"
        return [str(path) for path in folder.glob("libgsopt-*.so")]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class PlatformWheel(bdist_wheel):
    """The kernel has no Python in it: one wheel serves every Python of a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class KernelDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return True


EXTRAS = {
    "cuda": ["gsplat>=1.5.3,<1.7"],
    "compiler": ["ziglang>=0.13"],
    "plots": ["matplotlib>=3.8"],
    "spz": ["zstandard>=0.22"],
    "video": ["imageio-ffmpeg>=0.5"],
    "lpips": ["torchmetrics>=1.4"],
    "viewer": ["viser>=1.1.1,<1.2"],
    "test": [
        *("pytest>=8", "hypothesis>=6.100", "ruff>=0.12"),
        *("gsplat>=1.5.3,<1.7", "scikit-image>=0.22", "matplotlib>=3.8", "zstandard>=0.22"),
        *("imageio-ffmpeg>=0.5", "torchmetrics>=1.4", "viser>=1.1.1,<1.2"),
    ],
    "scene": ["mitsuba>=3.6"],
}

setup(
    name="gsopt",
    version="0.1.0",
    description="3D Gaussian splatting with every optimizer decision in the open, fast without a GPU",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=find_packages(include=["gsopt", "gsopt.*"]),
    package_data={"gsopt.native": ["src/*.c", "src/*.h"]},
    ext_modules=[Extension("gsopt.native.kernel", sources=[])],
    cmdclass={"build_ext": BuildKernel, "bdist_wheel": PlatformWheel},
    distclass=KernelDistribution,
    install_requires=[
        "torch>=2.6",
        "numpy>=1.26",
        "plyfile>=1.0",
        "tqdm>=4.66",
        "tensorboard>=2.16",
        "scipy>=1.11",
        "pillow>=10.3",
        "pycolmap>=4.0",
        "tyro>=0.9",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["gsopt = gsopt.commands:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Image Processing",
    ],
)
