"""The wheel holds what the packages need, and nothing of it is found only because the source tree is near."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INTEGRATIONS = ("langchain_ultragist", "llama_index_ultragist")
PACKAGES = {"ultragist_rag": ROOT / "ultragist_rag", **{name: ROOT / "integrations" / name for name in INTEGRATIONS}}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_exactly_the_files_of_the_packages(wheel: Path) -> None:
    tracked = {
        f"{name}/{path.relative_to(folder).as_posix()}"
        for name, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert shipped == tracked
    assert {f"{name}/py.typed" for name in PACKAGES} <= shipped


def test_installed_wheel_imports_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    # -I ignores the folder and PYTHONPATH, -S the site-packages where the editable install would be found.
    code = f"import sys; sys.path.insert(0, {str(target)!r}); import ultragist_rag; print(ultragist_rag.__file__); "
    code += "import ultragist_rag.config, ultragist_rag.layout, importlib.util as u; "
    code += f"assert all(u.find_spec(name) for name in {INTEGRATIONS})"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == target / "ultragist_rag" / "__init__.py"
