"""The house: who may import whom, how long a file may be, what importing costs, where CUDA is named."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "gsopt"
LONGEST = 400  # lines

# Part -> the parts it may import, also inside functions; `errors` is everybody's.
HOUSE = {
    "errors": set(),
    "geometry": set(),
    "similarity": {"geometry"},
    "schedules": set(),
    "schedule_text": {"schedules"},
    "freeze_windows": set(),
    "surgery": set(),
    "checkpoint": set(),
    "rundir": set(),
    "settings": set(),
    "pictures": set(),
    "error_sheet": {"pictures"},
    "video": {"pictures"},
    "perceptual": set(),
    "text": set(),
    "eta": {"schedules"},
    "log_json": set(),
    "progress": {"eta", "log_json"},
    "monitor": {"pictures"},
    "summary": {"checkpoint", "rundir", "text"},
    "device": set(),
    "versions": set(),
    "native": set(),
    "viewer_options": set(),
    "by_hand": {"groups", "locks"},
    "losses": {"native"},
    "metrics": {"losses"},
    "runtime": {"device", "native"},
    "feed": {"cameras", "datasets", "device", "runtime"},
    "cameras": {"similarity"},
    "camera_files": {"cameras"},
    "camera_paths": {"cameras"},
    "datasets": {"cameras", "geometry", "native", "similarity", "text"},  # of native the cache folder
    "scene_options": {"datasets"},
    "render": {"cameras", "geometry", "native"},
    "model": {"geometry", "datasets", "similarity"},
    "groups": {"schedules", "freeze_windows"},
    "regions": {"datasets"},
    "formats": {"checkpoint", "datasets", "geometry", "groups", "similarity"},
    "editing": {"formats", "geometry", "regions", "similarity"},
    "locks": {"model", "regions", "surgery"},
    "guards": {"locks", "model", "native"},
    "poses": set(),
    "exposure": {"runtime"},
    "optim": {"device", "native"},
    "batches": {"groups"},
    "strategy": {"surgery", "geometry", "schedules", "native"},
    "direct": {"cameras", "losses", "model", "native", "render"},
    "pruning": {"cameras", "model", "render"},
    "ranks": {"device", "guards"},
    "supervision": {"datasets", "losses", "schedules"},
    "limits": {"scene_options", "supervision"},
    "evaluation": {"cameras", "datasets", "losses", "metrics", "model", "ranks", "render", "runtime"},
}
BELOW = set(HOUSE)
HOUSE["group_options"] = {"groups", "model", "schedules", "schedule_text", "freeze_windows", "optim"}
HOUSE["warm_start"] = {"datasets", "formats", "groups", "guards", "model", "optim", "schedules"}
HOUSE["config"] = BELOW - {"evaluation", "monitor", "pictures", "native"} | {
    *("group_options", "joint_options", "warm_start"),
}
HOUSE["inspection"] = {"checkpoint", "config", "datasets", "model", "rundir", "settings", "text"}
HOUSE["joint_options"] = {"group_options", "groups", "model", "schedules", "freeze_windows"}
HOUSE["joint"] = BELOW
HOUSE["recorder"] = BELOW
HOUSE["resume"] = {
    *("checkpoint", "config", "datasets", "optim", "ranks", "rundir", "similarity", "versions"),
}
HOUSE["trainer"] = BELOW | {
    *("config", "group_options", "joint", "joint_options", "recorder", "resume", "warm_start"),
}
HOUSE["bench"] = BELOW | {"group_options", "config", "recorder", "trainer"}
HOUSE["viewer"] = BELOW | {"joint", "warm_start"}
HOUSE["report"] = {"config", "errors", "groups", "metrics", "pictures", "rundir", "settings"}
HOUSE["sweep"] = BELOW | {"config"}
HOUSE["blocks"] = BELOW | {"config", "sweep"}
HOUSE["commands"] = BELOW | {
    *(
        "blocks",
        "group_options",
        "joint_options",
        "config",
        "joint",
        "trainer",
        "bench",
        "sweep",
        "report",
        "viewer",
        "inspection",
        "prepare",
        "warm_start",
        "commands",
    ),
}
HOUSE["prepare"] = {"datasets", "device", "rundir", "settings", "text"}
HOUSE["__main__"] = {"commands"}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Modules of gsopt that a file imports anywhere, as "gsopt.render.cpu"; names of types do not count."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body.clear()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "gsopt"}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports inside the package are absolute"
            if node.module == "gsopt":
                found |= {f"gsopt.{alias.name}" for alias in node.names}
            elif node.module and node.module.startswith("gsopt."):
                found.add(node.module)
    return found


def packages(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", [p for p in sources() if part_of(p) != "__init__"], ids=str)
def test_arrows_go_down_only(path):
    part = part_of(path)
    assert part in HOUSE, f"{part} is new: give it its place in HOUSE"
    used = {module.split(".")[1] for module in imports(path)}
    assert used <= HOUSE[part] | {part, "errors"}


def test_the_house_has_no_circles():
    for part, below in HOUSE.items():
        for other in below - {part}:
            assert part not in HOUSE[other], f"{part} and {other} import each other"


@pytest.mark.parametrize(
    ("rule", "part", "never"),
    [
        ("a backend gets activated tensors, never the model", "render", {"model", "trainer", "strategy"}),
        ("a strategy does not know the trainer", "strategy", {"trainer", "config", "optim", "render"}),
        ("the model knows neither renderer nor optimizer", "model", {"render", "optim", "groups", "surgery"}),
        ("the mathematics knows torch only", "geometry", BELOW - {"geometry"}),
        ("the loss knows torch only, and the kernel", "losses", BELOW - {"losses", "native"}),
        ("schedules know torch only", "schedules", BELOW - {"schedules"}),
        ("surgery knows torch only", "surgery", BELOW - {"surgery"}),
    ],
)
def test_who_never_knows_whom(rule, part, never):
    assert not HOUSE[part] & never, rule


def test_gsplat_is_imported_in_one_file_only():
    """`device` only asks whether it can be imported."""
    users = {str(path.relative_to(PACKAGE)) for path in sources() if "gsplat" in packages(path)}
    assert users <= {"render/cuda.py"}


def test_cuda_is_called_in_two_files_only():
    """`torch.cuda...` and `tensor.cuda()`; everything else says `.to(device)`."""
    users = set()
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.Attribute) and node.attr == "cuda" for node in ast.walk(tree)):
            users.add(str(path.relative_to(PACKAGE)))
    assert users <= {"render/cuda.py", "device.py"}


def test_cuda_is_named_in_three_files_only():
    """As a value: the name of a device type, of a backend. Messages and documentation may speak of it."""
    users = set()
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        if any(isinstance(name, str) and re.fullmatch("cuda(:[0-9]*)?", name.lower()) for name in names):
            users.add(str(path.relative_to(PACKAGE)))
    # The command `doctor` reports on CUDA under that name.
    assert users == {"render/cuda.py", "render/__init__.py", "device.py", "commands/doctor.py"}


@pytest.mark.parametrize("folder", ["gsopt", "scripts", "tests", "data"])
def test_no_file_is_long(folder):
    for path in (ROOT / folder).rglob("*"):
        if path.suffix in (".py", ".c", ".h"):
            lines = len(path.read_text(encoding="utf-8").splitlines())
            assert lines <= LONGEST, f"{path.relative_to(ROOT)} has {lines} lines"


def test_scripts_only_call_the_commands():
    for path in (ROOT / "scripts").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 20, path.name
        assert imports(path) == {"gsopt.commands"}, path.name


def test_importing_gsopt_is_light():
    """Nothing that only some uses need is loaded by `import gsopt`."""
    heavy = ["gsplat", "tensorboard", "viser", "PIL", "scipy", "pycolmap", "plyfile", "tyro", "torchmetrics"]
    program = f"import sys, gsopt; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"
