"The scripts of bench/ as modules, for the tests of them."
import importlib.util, sys
from pathlib import Path

BENCH = Path(__file__).parents[1]/'bench'
sys.path.append(str(BENCH)) # some import others

def load_bench(name):
    "bench/NAME.py as a module of its own name, which hides no other"
    spec = importlib.util.spec_from_file_location(f'bench_{name}', BENCH/f'{name}.py')
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
