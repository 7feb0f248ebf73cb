"""Build the wheel `bnn_runtime`, which runs packed files without torch: `python tools/runtime.py [--out dist]`.

The modules are those of `bnn_bn.targets.runtime.needed_modules`; versions and names come from settings.ini.
"""
import argparse
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from bnn_bn.targets.runtime import write_runtime  # noqa: E402

PROJECT = '''[build-system]
requires = ["setuptools>=64"]
build-backend = "setuptools.build_meta"

[project]
name = "bnn_runtime"
version = "{version}"
description = "Runs the packed binary networks of bnn_bn on numpy, numba and Pillow, without torch"
requires-python = ">={min_python}"
dependencies = ["numpy>=2", "numba", "pillow"]
license = {{text = "MIT"}}
urls = {{source = "{git_url}"}}

[tool.setuptools.packages.find]
include = ["bnn_runtime*"]

[tool.setuptools]
license-files = ["LICENSE"]
'''

def settings():
    config = ConfigParser(delimiters=['='], interpolation=None)
    config.read(ROOT/'settings.ini', encoding='utf-8')
    return config['DEFAULT']

def write_project(folder):
    "the sources of the wheel"
    write_runtime(folder)
    (folder/'pyproject.toml').write_text(PROJECT.format(**settings()))
    (folder/'LICENSE').write_text((ROOT/'LICENSE').read_text())

def build(out):
    "the path of the wheel"
    with tempfile.TemporaryDirectory() as d:
        write_project(Path(d))
        pip = [sys.executable, '-m', 'pip', '-q', '--disable-pip-version-check']
        options = ['--no-deps', '-w', str(out)]
        if find_spec('setuptools'): options.append('--no-build-isolation')
        subprocess.run([*pip, 'wheel', *options, d], check=True)
    return max(Path(out).glob('bnn_runtime-*.whl'), key=lambda f: f.stat().st_mtime)

def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--out', default=str(ROOT/'dist'), help='folder for the wheel')
    wheel = build(p.parse_args().out)
    print(f'{wheel.name}: {wheel.stat().st_size/1e3:.0f} kB')

if __name__ == '__main__': main()
