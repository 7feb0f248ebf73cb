"""An environment of its own for each rival of `bench/all.py`, made from `bench/rivals/NAME.txt`.

A file pins what is installed; a line `# pip: WORDS` in it gives pip more options. An environment is
made again when its file changes. What cannot be installed here has a reason instead.
"""
import hashlib, re, subprocess, sys
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent/'rivals'
# names in the tables; ONNX Runtime in float32 is one of ours
SHOWN = dict(openvino='OpenVINO', larq='Larq', onnx='ONNX Runtime, int8', bnn_lab='bnn-lab')

@dataclass
class Environment:
    "Where a rival is installed, or why it is not."
    name:str
    python:str = None # its interpreter
    missing:str = ''  # the reason

def pip_options(text):
    "words of the lines `# pip:`"
    return ' '.join(re.findall(r'^# pip:(.*)$', text, re.M)).split()

def last_line(text):
    "of an error, without paths and addresses"
    lines = [line for line in text.strip().splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith('ERROR')]
    last = ['no reason was given', *lines, *errors][-1]
    return re.sub(r'\S*(?:/|://)\S*', '...', last).strip()

def run(command):
    "the last words of a command that fails, else nothing"
    try: done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    except (OSError, subprocess.TimeoutExpired) as e: return last_line(str(e))
    return last_line(done.stderr or done.stdout) if done.returncode else ''

def install(folder, file, python):
    "why it could not be made; nothing where it was"
    failed = run([python, '-m', 'venv', '--clear', str(folder)])
    if failed: return failed
    pip = [str(interpreter(folder)), '-m', 'pip', 'install', '-q', '--disable-pip-version-check']
    return run([*pip, *pip_options(file.read_text()), '-r', str(file)])

def interpreter(folder): return folder/('Scripts' if sys.platform == 'win32' else 'bin')/'python'

def environment(
    name, # of a file in `bench/rivals`
    place, # folder of all environments
    python=sys.executable, # the interpreter that they begin with
    files=FOLDER, # of requirements
)->Environment:
    "Make an environment unless it is there."
    file, folder = Path(files)/f'{name}.txt', Path(place)/name
    if not file.is_file(): return Environment(name, missing=f'there is no {file.name}')
    stamp, wanted = folder/'made', hashlib.sha256(file.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return Environment(name, str(interpreter(folder)))
    failed = install(folder, file, str(python))
    if failed: return Environment(name, missing=failed)
    stamp.write_text(wanted)
    return Environment(name, str(interpreter(folder)))

def environments(names, place, **kwargs):
    "all of them, each told as it comes"
    found = {}
    for name in names:
        print(f'environment {name}', file=sys.stderr, flush=True)
        found[name] = environment(name, place, **kwargs)
        if found[name].missing: print(f'  left out: {found[name].missing}', file=sys.stderr)
    return found
