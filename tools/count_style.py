"""Count how the code and the notebooks read: `python tools/count_style.py [PATHS]`.

PATHS are files or folders; without them nbs, tests, bench and tools are counted. It prints one
table: a row for each notebook, then a row for each folder's Python files, then the totals of all.

lines       code lines: neither blank nor only a comment
mean        mean length of a code line, in characters
>100 ...    share of code lines longer than 100, 120 and 140 characters, in percent
cond ...    conditional expressions, comprehensions, lambdas and semicolons per 100 code lines
fn, fnmax   median and largest number of lines of a function, with its signature and docstring
body        the largest function without signature and docstring
dense       functions with more than one branch a line of that body
out         share of code cells with any output, in percent
assert      share of visible code cells that end in an assertion, in percent; visible are those
            without `export`, `exporti`, `default_exp`, `hide`
prose       share of code cells with prose before them, in percent
md:code     markdown cells for each code cell
words       median number of words in a sentence of prose
"""
import ast, io, json, re, statistics, sys, tokenize
from dataclasses import dataclass, field
from pathlib import Path

FOLDERS = 'nbs', 'tests', 'bench', 'tools'
COMPREHENSIONS = ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp
BRANCHES = ast.If, ast.IfExp, ast.For, ast.While, ast.Try, ast.BoolOp, ast.comprehension
FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef
HIDDEN = re.compile(r'^#\|\s*(export|exporti|default_exp|hide)\b', re.M)
CHECK = re.compile(r'^(assert|(test_\w+|expect_fail|torch\.testing\.assert_\w+|assert_\w+)\()')

@dataclass
class Counts:
    "What is counted in one file, or in many together."
    lengths:list = field(default_factory=list)   # characters of each code line
    bodies:list = field(default_factory=list)    # lines of each function's body
    wholes:list = field(default_factory=list)    # lines of each function
    sentences:list = field(default_factory=list) # words of each sentence of prose
    conditionals:int = 0
    comprehensions:int = 0
    lambdas:int = 0
    semicolons:int = 0
    dense:int = 0
    code:int = 0
    markdown:int = 0
    with_output:int = 0
    with_prose:int = 0
    visible:int = 0
    asserting:int = 0

    def __add__(self, other):
        return Counts(*(a + b for a, b in zip(vars(self).values(), vars(other).values())))

def plain(source):
    "code without the lines that are no Python: magics and shell commands"
    lines = source.splitlines()
    kept = ['' if line.startswith(('%', '!')) else line for line in lines]
    return '\n'.join(kept)

def is_code(line):
    line = line.strip()
    return bool(line) and not line.startswith('#')

def count_semicolons(source):
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(t.type == tokenize.OP and t.string == ';' for t in tokens)

def body_of(function):
    "its statements without the docstring"
    return function.body[1:] if ast.get_docstring(function) else function.body

def count_function(function, counts):
    body = body_of(function)
    lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
    branches = sum(isinstance(n, BRANCHES) for statement in body for n in ast.walk(statement))
    counts.bodies.append(lines)
    counts.wholes.append(function.end_lineno - function.lineno + 1)
    counts.dense += branches > max(lines, 1)

def count_code(source, counts):
    source = plain(source)
    counts.lengths += [len(line) for line in source.splitlines() if is_code(line)]
    counts.semicolons += count_semicolons(source)
    for node in ast.walk(ast.parse(source)):
        counts.conditionals += isinstance(node, ast.IfExp)
        counts.comprehensions += isinstance(node, COMPREHENSIONS)
        counts.lambdas += isinstance(node, ast.Lambda)
        if isinstance(node, FUNCTIONS): count_function(node, counts)

def expects_failure(node):
    return isinstance(node, ast.With) and 'expect_fail' in ast.unparse(node.items[0])

def last_statement(source):
    "the source of the last statement, or of the last one within a `with` or `for`"
    body = ast.parse(plain(source)).body
    node = body[-1] if body else None
    while isinstance(node, (ast.With, ast.For, ast.If)) and not expects_failure(node):
        node = node.body[-1]
    if node is None: return ''
    return 'expect_fail()' if expects_failure(node) else ast.unparse(node)

def is_check(statement):
    "an assertion, also as `_ = [test_eq(...) for ...]`"
    return bool(CHECK.match(re.sub(r'^(\w+ = )?\[', '', statement)))

def count_prose(source, counts):
    "words of each sentence, without headings, tables, lists of links, formulas and code"
    kept = [line for line in source.splitlines() if not re.match(r'\s*([#|>]|\$\$)', line)]
    text = re.sub(r'\$\$.*?\$\$|`[^`]*`|\$[^$]*\$', 'x', ' '.join(kept), flags=re.S)
    for sentence in re.split(r'(?<=[.!?:])\s+', text):
        words = re.findall(r"[\w'-]+", sentence)
        if len(words) > 2: counts.sentences.append(len(words))

def count_notebook(path):
    counts, before = Counts(), ''
    for cell in json.loads(path.read_text())['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown':
            counts.markdown += 1
            count_prose(source, counts)
        if cell['cell_type'] == 'code' and source.strip():
            count_cell(source, cell['outputs'], before == 'markdown', counts)
        before = cell['cell_type']
    return counts

def count_cell(source, outputs, after_prose, counts):
    counts.code += 1
    counts.with_output += bool(outputs)
    counts.with_prose += after_prose
    count_code(source, counts)
    if HIDDEN.search(source): return
    counts.visible += 1
    counts.asserting += is_check(last_statement(source))

def count_file(path):
    if path.suffix == '.ipynb': return count_notebook(path)
    counts = Counts()
    count_code(path.read_text(), counts)
    return counts

def percent(part, whole, digits=0):
    return f'{100*part/whole:.{digits}f}' if whole else '-'

def row(counts):
    "the cells of the table, as text"
    lengths, n = counts.lengths, max(len(counts.lengths), 1)
    longer = [percent(sum(length > limit for length in lengths), n, 1) for limit in (100, 120, 140)]
    tokens = counts.conditionals, counts.comprehensions, counts.lambdas, counts.semicolons
    notebook = [percent(counts.with_output, counts.code), percent(counts.asserting, counts.visible),
                percent(counts.with_prose, counts.code)]
    ratio = f'{counts.markdown/counts.code:.2f}' if counts.code else '-'
    words = f'{statistics.median(counts.sentences):.0f}' if counts.sentences else '-'
    functions = [f'{statistics.median(counts.wholes or [0]):.0f}', str(max(counts.wholes or [0])),
                 str(max(counts.bodies or [0])), str(counts.dense)]
    mean, per_100 = f'{sum(lengths)/n:.1f}', [percent(t, n, 1) for t in tokens]
    return [str(len(lengths)), mean, *longer, *per_100, *functions, *notebook, ratio, words]

HEAD = ('file lines mean >100 >120 >140 cond compr lambda ; fn fnmax body dense '
        'out assert prose md:code words').split()

def table(rows):
    "rows of text as lines, the first column to the left"
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    def align(name, *cells):
        return [name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:]))]
    return '\n'.join('  '.join(align(*r)).rstrip() for r in rows)

def find(paths):
    "notebooks and Python files in these files and folders, in order"
    found = []
    for path in map(Path, paths):
        if not path.exists(): raise SystemExit(f'{path}: no such file or folder')
        found += sorted(path.rglob('*')) if path.is_dir() else [path]
    kept = [p for p in found if p.suffix in ('.ipynb', '.py')]
    return [p for p in kept if '.ipynb_checkpoints' not in p.parts]

def main(paths):
    rows, total, scripts = [], Counts(), {}
    for path in find(paths):
        counts = count_file(path)
        total += counts
        if path.suffix == '.ipynb': rows.append([path.stem, *row(counts)])
        else: scripts[path.parent] = scripts.get(path.parent, Counts()) + counts
    rows += [[f'{folder}/*.py', *row(counts)] for folder, counts in scripts.items()]
    print(table([HEAD, *rows, ['total', *row(total)]]))

if __name__ == '__main__': main(sys.argv[1:] or FOLDERS)
