"""The kernel under the address and undefined behaviour sanitizers: nothing out of bounds or undefined."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gsopt.native import available_isas, build

FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")

PROGRAM = """
import sys
from pathlib import Path

import torch

import gsopt
from gsopt import native
from gsopt.cameras import Camera
from gsopt.direct import DirectView
from gsopt.losses import photometric

torch.set_num_threads(1)
native._locate = lambda isa: Path(sys.argv[1])
native.set_num_threads(3)
generator = torch.Generator().manual_seed(0)


def rand(*shape):
    return torch.rand(*shape, generator=generator)


def render(n, width, height, degree, channels, mode):
    colors = rand(n, channels) if degree is None else rand(n, (degree + 1) ** 2, 3) - 0.5
    leaves = [
        3 * rand(n, 3) - 1.5,
        rand(n, 4) - 0.5,
        torch.exp(5 * rand(n, 3) - 4.5),
        rand(n),
        colors,
    ]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    viewmats = torch.eye(4)[None].clone()
    viewmats[:, 2, 3] = 2.0
    size = float(max(width, height))
    Ks = torch.tensor([[[size, 0, width / 2], [0, size, height / 2], [0, 0, 1]]])
    image, alphas, info = gsopt.rasterization(
        *leaves,
        viewmats,
        Ks,
        width,
        height,
        sh_degree=degree,
        backgrounds=rand(1, colors.shape[-1]),
        packed=n % 2 == 1,
        absgrad=True,
        rasterize_mode=mode,
        backend="cpu",
    )
    if image.shape[-1] == 3:
        loss = photometric(image[0], (rand(height, width, 3) * 255).to(torch.uint8))[0]
        loss = loss + 2 * photometric(image[0], rand(height, width, 3), 0.5)[0]
    else:
        loss = image.square().mean()
    if loss.requires_grad:
        (loss + alphas.mean()).backward()
    assert image.isfinite().all()
    for name in ("adam", "adamw", "visible_adam"):
        groups = [{"params": [leaf], "lr": 0.01, "weight_decay": 0.1} for leaf in leaves]
        optimizer = gsopt.build_optimizer(name, groups, native=True)
        optimizer.step()
        if name == "visible_adam":
            optimizer.add_visible(leaves, rand(n) < 0.3)
        optimizer.step()


def view(n, width, height):
    model = gsopt.GaussianModel(n, 3)
    with torch.no_grad():
        model.xyz.copy_(3 * rand(n, 3) - 1.5)
        model.rotation.copy_(rand(n, 4) - 0.5)
        model.scaling.copy_(5 * rand(n, 3) - 4.5)
        model.opacity.copy_(4 * rand(n, 1) - 2)
    viewmat, size = torch.eye(4), float(max(width, height))
    viewmat[2, 3] = 2.0
    K = torch.tensor([[size, 0, width / 2], [0, size, height / 2], [0, 0, 1]])
    photo = (rand(height, width, 3) * 255).to(torch.uint8)
    for options in ({}, {"absgrad": True, "rasterize_mode": "antialiased"}):
        direct = DirectView(model, **options)
        for frozen in ((), ("xyz", "scaling", "rotation"), ("feature_rest", "opacity")):
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name not in frozen)
            camera = Camera("a", width, height, K, viewmat)
            done = direct.backward(camera, rand(3), photo, 0.2, sh_degree=3, grad2d=True)
            assert done.image.isfinite().all()


for n in (0, 1, 37, 1500):
    for width, height in ((1, 1), (17, 33), (70, 50)):
        for degree, channels, mode in ((None, 3, "classic"), (None, 7, "antialiased"), (3, 3, "antialiased")):
            render(n, width, height, degree, channels, mode)
        view(n, width, height)
print("done")
"""


def runtime(tmp_path: Path) -> str:
    """What to preload for the compiler's sanitizers; skips where no such library can be made and loaded."""
    try:
        compiler = build.find_compiler()
    except build.NoCompiler as error:
        pytest.skip(str(error))
    (tmp_path / "probe.c").write_text("int probe(int x) { return x + 1; }\n")
    command = [*compiler, *FLAGS, "-fPIC", "-shared", "probe.c", "-o", "probe.so"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{compiler[0]} has no sanitizers: {done.stderr.strip()[-200:]}")
    found = subprocess.run(
        [*compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=False
    ).stdout.strip()
    if not os.path.isabs(found) or not os.path.exists(found):
        pytest.skip(f"{compiler[0]} has no shared libasan")
    done = subprocess.run(
        [*compiler, "-print-file-name=libstdc++.so.6"], capture_output=True, text=True, check=False
    )
    found += f" {done.stdout.strip()}"  # whose exceptions it has to see: a torch for CUDA throws some
    probe = python("import ctypes, torch; ctypes.CDLL('./probe.so')", found, tmp_path)
    if probe.returncode:
        pytest.skip(f"{found}: no process starts with it: {probe.stderr.strip()[-200:]}")
    return found


def python(program: str, preload: str, folder: Path, *words: str) -> subprocess.CompletedProcess:
    """A process with the sanitizer's runtime in it."""
    environment = os.environ | {
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "GSOPT_CACHE": str(folder),
        "GSOPT_ISA": ISA,
    }
    return subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


ISA = "avx2" if "avx2" in available_isas() else "baseline"


def test_renders_losses_and_steps(tmp_path):
    preload = runtime(tmp_path)
    library = build.compile_kernel(tmp_path, ISA, extra_flags=FLAGS)
    assert b"__asan_report" in library.read_bytes()
    done = python(PROGRAM, preload, tmp_path, str(library))
    assert "runtime error" not in done.stderr, done.stderr[-5000:]
    assert "AddressSanitizer" not in done.stderr, done.stderr[-5000:]
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-5000:]


def test_an_error_would_be_found(tmp_path):
    """A sanitized library that writes out of bounds ends its process."""
    preload = runtime(tmp_path)
    (tmp_path / "bad.c").write_text(
        "#include <stdlib.h>\nvoid bad(int n) { ((volatile char *)malloc(n))[n] = 1; }\n"
    )
    command = [*build.find_compiler(), *FLAGS, "-fPIC", "-shared", "bad.c", "-o", "bad.so"]
    subprocess.run(command, cwd=tmp_path, check=True)
    done = python("import ctypes; ctypes.CDLL('./bad.so').bad(8)", preload, tmp_path)
    assert done.returncode
    assert re.search("heap-buffer-overflow|store to address .* with insufficient space", done.stderr)
