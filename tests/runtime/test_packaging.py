"""What is installed is what is in the folders: what is not listed in pyproject would be missing in a wheel."""

from __future__ import annotations

import os
import subprocess
import tomllib
from importlib import metadata, resources
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("bridge", "export", "kernels", "runtime", "training")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())


def folders_with_code() -> set[str]:
    found = set()
    for room in ROOMS:
        for folder, _, files in os.walk(ROOT / room):
            if "__init__.py" in files:
                found.add("shotstream." + ".".join(Path(folder).relative_to(ROOT).parts))
    return found


def test_every_package_of_every_room_is_listed_in_pyproject() -> None:
    assert set(SETTINGS["tool"]["setuptools"]["packages"]) == folders_with_code()


def test_python_files_lie_only_in_packages() -> None:
    for room in ROOMS:
        for file in (ROOT / room).rglob("*.py"):
            assert (file.parent / "__init__.py").exists(), f"{file} is in no package"


def test_data_files_are_listed_as_package_data() -> None:
    tracked = subprocess.run(["git", "ls-files", *ROOMS], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:  # an unpacked archive has no git
        return
    patterns = {name.split(".", 1)[1]: globs for name, globs in SETTINGS["tool"]["setuptools"]["package-data"].items()}
    for line in tracked.stdout.split():
        path = Path(line)
        if path.suffix in (".py", ".md"):
            continue
        inside = Path(*path.parts[1:])
        listed = {file for glob in patterns[path.parts[0]] for file in (ROOT / path.parts[0]).glob(glob)}
        assert ROOT / path in listed, f"{inside} of {path.parts[0]} is not in package-data"


def test_the_script_the_plugins_and_the_demo_story_are_installed() -> None:
    scripts = metadata.entry_points(group="console_scripts", name="shotstream")
    assert [script.value for script in scripts] == ["shotstream.runtime.cli:main"]
    assert "training" in metadata.entry_points(group="shotstream.plugins").names
    story = yaml.safe_load((resources.files("shotstream.runtime") / "stories" / "demo.yaml").read_text())
    assert any("choice" in entry for entry in story["shots"])


def test_constraints_pin_torch_to_one_version_that_pyproject_allows() -> None:
    lines = (ROOT / "constraints.txt").read_text().split()
    assert [line for line in lines if line.startswith("torch==")] == ["torch==2.13.0"]
