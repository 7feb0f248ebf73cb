"""mutmut's mutants, of compiled functions too: `python tools/mutate_code.py onebit.kernels`.

mutmut leaves functions under a decorator alone, and most of the kernels stand under numba's. Here a
mutant is the whole module with one change. Each is run in a fork, which has all modules already but
this one and those that are made of it; `tools/mutants/plain.py` runs the kernels there without
numba's compiler. The mutants are drawn by their seed, what each came to is written at once, and the
same command goes on where it stopped, unless the module or a test has changed. One that does not end
within its time counts as killed, as does one that crashes.
"""
import argparse
import difflib
import gc
import hashlib
import importlib
import importlib.util
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import libcst as cst
import mutmut.mutation.file_mutation as mutmut
import pytest
from libcst.metadata import MetadataWrapper
from mutmut.mutation.mutators import mutation_operators
from mutmut.mutation.pragma_handling import get_ignored_lines

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT/'tests'), str(ROOT/'tools'/'mutants')]
os.environ['PYTEST_DISABLE_PLUGIN_AUTOLOAD'] = '1' # they take longer than most tests

QUICK = ['tools/mutants/test_engine.py', 'tools/mutants/test_kernels.py']

QUIETLY = ['-x', '-q', '--tb=line', '--assert=plain', '-p', 'no:cacheprovider',
           '-p', 'no:threadexception']

class Visitor(mutmut.MutationVisitor):
    "decorated functions are changed too, docstrings are not"
    def _skip_node_and_children(self, node):
        if isinstance(node, cst.FunctionDef) and node.decorators: return False
        text = cst.SimpleString, cst.ConcatenatedString
        if isinstance(node, cst.Expr) and isinstance(node.value, text): return True
        return super()._skip_node_and_children(node)

def mutants_of(source):
    "(name of the function, change, tree, statement of the module) for each, in mutmut's order"
    wrapper = MetadataWrapper(cst.parse_module(source))
    visitor = Visitor(mutation_operators, get_ignored_lines('', source, wrapper))
    tree = wrapper.visit(visitor)
    outer = {f: s for s in tree.body for f in (s, *getattr(s.body, 'body', ()))}
    for m in visitor.mutations:
        function = m.contained_by_top_level_function
        if isinstance(function, cst.FunctionDef):
            yield function.name.value, m, tree, outer[function]

def mutated(m, tree, statement):
    "the module with that change"
    new = statement.deep_replace(m.original_node, m.mutated_node)
    return tree.with_changes(body=[new if s is statement else s for s in tree.body]).code

def changed(old, new):
    "the lines that differ"
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm='')
    return [line for line in lines if line[:1] in '+-' and line[:3] not in ('+++', '---')]

# One mutant --------------------------------------------------------------------------------------

def made_of(module, names):
    "does it hold one of these modules, or what they define?"
    def are(key, values): return any(getattr(v, key, None) in names for v in values)
    return are('__module__', vars(module).values()) or are('__name__', vars(module).values())

def forget(name):
    "a module is imported anew, and so is what was made with it; the rest stays as it is"
    names, before = {name}, 0
    while len(names) > before:
        before = len(names)
        names |= {k for k, v in [*sys.modules.items()] if ours(v) and made_of(v, names)}
    for k in names: sys.modules.pop(k, None)
    gc.collect()
    gc.freeze() # what is there is not looked through again by each fork

def ours(module):
    file = getattr(module, '__file__', None) or ''
    return file.startswith(str(ROOT)) and module.__name__ != '__main__'

def put(name, source):
    "the module that all others import from now on"
    spec = importlib.util.find_spec(name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    exec(compile(source, spec.origin, 'exec'), vars(module))
    setattr(sys.modules[name.rpartition('.')[0]], name.rpartition('.')[2], module)

def run_tests(tests):
    return int(pytest.main([*QUIETLY, *tests]))

def child(name, source, tests, log):
    "the tests against one mutant; 0: it survives"
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2): os.dup2(out, stream)
    threading.excepthook = lambda args: os._exit(97) # else the others would wait for that thread
    try: put(name, source)
    except BaseException: return 99
    return run_tests(tests)

def ended(pid, seconds):
    "how it ended; 'time' where it had to be ended"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found: return 'survived' if status == 0 else 'killed'
        time.sleep(.01)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 'time'

def fate(name, source, tests, seconds, log):
    "'survived', 'killed' or 'time'"
    pid = os.fork()
    if pid: return ended(pid, seconds)
    os.setpgid(0, 0)
    code = 98
    try: code = child(name, source, tests, log)
    finally: os._exit(code)

# All of them -------------------------------------------------------------------------------------

def drawn(mutants, seed, most, only):
    "numbers of mutants, in the order in which they are run"
    order = list(range(len(mutants)))
    random.Random(seed).shuffle(order)
    if only: return [i for i in sorted(order) if mutants[i][0] in only]
    return order[:most]

def key_of(source, tests):
    "a digest of the module and of the files with the tests"
    paths = [ROOT/t.partition('::')[0] for t in tests]
    files = [f for p in paths for f in ([p] if p.is_file() else sorted(p.rglob('*.py')))]
    return hashlib.sha256(repr([source, tests, [f.read_bytes() for f in files]]).encode()).hexdigest()[:16]

def known(out, key):
    "what was measured before, of this module by these tests: number -> its line"
    lines = out.read_text().splitlines() if out.exists() else []
    return {r['number']: r for r in map(json.loads, lines) if r.get('key') == key}

def next_time(text, now=None):
    "when a clock shows HH:MM the next time"
    now, then = now or datetime.now(), datetime.strptime(text, '%H:%M')
    end = now.replace(hour=then.hour, minute=then.minute, second=0, microsecond=0)
    return end if end > now else end + timedelta(days=1)

def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('module', help="such as 'onebit.engine'")
    parser.add_argument('--tests', nargs='+', default=QUICK, help='in this order, until one fails')
    parser.add_argument('--most', type=int, default=10**6, help='mutants that are drawn')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--only', nargs='*', default=(), help='functions, instead of a draw')
    parser.add_argument('--numbers', nargs='*', type=int, default=(), help='the same, by number')
    parser.add_argument('--seconds', type=float, default=60, help='a mutant may take')
    parser.add_argument('--until', type=next_time, default=datetime.max, metavar='HH:MM',
                        help='when no further mutant is begun')
    parser.add_argument('--out', type=Path, required=True, help='a line of JSON for each')
    return parser.parse_args()

def main():
    args = parse()
    name = f'bnn_bn.{args.module}'
    source = (ROOT/(name.replace('.', '/') + '.py')).read_text()
    mutants, log = list(mutants_of(source)), str(args.out) + '.log'
    order = args.numbers or drawn(mutants, args.seed, args.most, args.only)
    os.chdir(ROOT)
    if run_tests(args.tests): sys.exit('the tests fail on the code as it is')
    forget(name)
    key = key_of(source, args.tests)
    done = {} if args.numbers else known(args.out, key)
    for i in order:
        if i in done: continue
        if datetime.now() >= args.until: break
        function, *where = mutants[i]
        code = mutated(*where)
        end = fate(name, code, args.tests, args.seconds, log)
        done[i] = dict(number=i, function=function, end=end, change=changed(source, code), key=key)
        with args.out.open('a') as f: f.write(json.dumps(done[i]) + '\n')
    ends = Counter(done[i]['end'] for i in order if i in done)
    print(f'{name}: {len(mutants)} mutants, {sum(ends.values())} of them run: {dict(ends)}')

if __name__ == '__main__': main()
