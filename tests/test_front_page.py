"The code of the front page does what it says: as a script, and pasted line by line into python."
import json
import os
import re
import subprocess
import sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT/'README.md').read_text(encoding='utf-8')
BLOCKS = re.findall(r'^```python\n(.*?)^```', README, re.M | re.S)
SAYS = "print('classes', len(labels), sum(p for _, p in labels[0]) <= 1.001)"

def run(args, text, folder):
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONWARNINGS': 'ignore'}
    done = subprocess.run([sys.executable, *args], input=text, env=env, cwd=folder,
                          capture_output=True, text=True, timeout=600)
    assert 'classes 3 True' in done.stdout, done.stderr[-2000:]
    assert 'Traceback' not in done.stderr
    return done

def test_as_a_script(tmp_path):
    "one after the other, the blocks are a program; its files are there"
    file = tmp_path/'front_page.py'
    file.write_text('\n'.join([*BLOCKS, SAYS]), encoding='utf-8')
    run([file.name], None, tmp_path)
    assert {'fashion.bnn', 'fashion.onnx'} <= {f.name for f in tmp_path.iterdir()}

def test_pasted_line_by_line(tmp_path):
    "an interactive python takes each block as it stands, an empty line after it"
    run(['-i', '-q'], '\n\n'.join([*BLOCKS, SAYS, '']), tmp_path)

def test_its_length():
    "a page to read at once"
    assert len(README.splitlines()) < 150

@pytest.mark.parametrize('command', sorted(set(re.findall(r'^bnn (\w+)', README, re.M))))
def test_commands_are_there(command):
    "each command that the page shows has a help"
    bnn = 'from bnn_bn.cli import bnn; bnn()'
    done = subprocess.run([sys.executable, '-c', bnn, command, '--help'],
                          cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert not done.returncode and 'usage' in done.stdout, done.stderr[-500:]

@pytest.mark.parametrize('target', re.findall(r'^make (\w+)', README, re.M))
def test_make_knows_its_targets(target):
    "each `make` of the page is a rule"
    rules = re.findall(r'^(\w+):', (ROOT/'Makefile').read_text(encoding='utf-8'), re.M)
    assert target in rules

def test_ratios_with_avx2():
    "the fastest float32 runtime of each network, in the order of the table"
    nets = json.loads((ROOT/'results/rivals_avx2/speed.json').read_text())['nets']
    float32 = 'torch', 'torch.compile', 'ONNX Runtime', 'OpenVINO, float32'
    least = [min(r['times_first'] for r in net['threads']['1'] if r['name'] in float32)
             for net in nets.values()]
    *names, last = (f'{v:.1f}' for v in least)
    assert list(nets) == re.findall(r'^\| (ReActNet-\S+ \d+x\d+) \|', README, re.M)
    assert f'takes {", ".join(names)} and {last} times as long' in README
