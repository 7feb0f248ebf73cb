"""What a module of the package offers, read from its text: signatures, docstrings, the comments
behind arguments ("docments") and sources. Nothing is imported, so the site needs no torch."""
import ast
import io
import tokenize
from dataclasses import dataclass, field
from pathlib import Path

@dataclass
class Argument:
    "One row of a table: the arguments of one line share its comment"
    names: str
    meaning: str

@dataclass
class Symbol:
    "A public function, class or method"
    name: str             # as it stands in its module: `f`, `C`, `C.method`
    kind: str             # the directive: 'function', 'class', 'method', 'property'
    signature: str        # with brackets; '' for a property
    doc: str
    arguments: list       # of Argument
    returns: str          # what the comment behind `->` says
    line: int             # the first one in the module's file
    source: str
    methods: list = field(default_factory=list)

def comments_of(text):
    "the comment of each line that has one"
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {t.start[0]: t.string.lstrip('# ') for t in tokens if t.type == tokenize.COMMENT}

def arguments_of(node):
    "the arguments of a function, in order, each with the name that the reader writes"
    a = node.args
    plain = [(x, x.arg) for x in a.posonlyargs + a.args]
    star = [(a.vararg, f'*{a.vararg.arg}')] if a.vararg else []
    named = [(x, x.arg) for x in a.kwonlyargs]
    double = [(a.kwarg, f'**{a.kwarg.arg}')] if a.kwarg else []
    return [(x, name) for x, name in plain + star + named + double if name not in ('self', 'cls')]

def argument_rows(pairs, comments, last):
    "pairs of (node, name) as rows, for the lines that have a comment and lie before `last`"
    lines = {}
    for node, name in pairs: lines.setdefault(node.lineno, []).append(name)
    rows = [(', '.join(names), comments.get(line)) for line, names in lines.items() if line < last]
    return [Argument(names, text) for names, text in rows if text]

def returned(node, comments):
    "the comment behind the return annotation, if that stands on a line of its own"
    if node.returns is None: return ''
    if any(x.lineno == node.returns.lineno for x, _ in arguments_of(node)): return ''
    return comments.get(node.returns.lineno, '')

def without_first(args):
    "a copy of `args` without self or cls"
    names = [x.arg for x in args.posonlyargs + args.args]
    if names[:1] not in (['self'], ['cls']): return ast.unparse(args)
    return ast.unparse(args).partition(',')[2].strip()

def signature_of(node):
    result = f' -> {ast.unparse(node.returns)}' if node.returns else ''
    return f'({without_first(node.args)}){result}'

def decorators(node): return [ast.unparse(d) for d in node.decorator_list]

def source_of(node, text):
    "the lines of a definition, with its decorators"
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    return '\n'.join(text.splitlines()[first - 1:node.end_lineno])

def function(node, text, comments, owner=''):
    "a function or method as a Symbol"
    kind = 'method' if owner else 'function'
    if 'property' in decorators(node): kind = 'property'
    rows = argument_rows(arguments_of(node), comments, node.body[0].lineno)
    signature = '' if kind == 'property' else signature_of(node)
    name = f'{owner}.{node.name}' if owner else node.name
    return Symbol(name, kind, signature, ast.get_docstring(node) or '', rows,
                  returned(node, comments), node.lineno, source_of(node, text))

def fields_of(node, comments):
    "signature and table of a dataclass"
    fields = [x for x in node.body if isinstance(x, ast.AnnAssign)]
    pairs = [(x, x.target.id) for x in fields]
    one = lambda x: ast.unparse(x).replace(' = ', '=')
    return f"({', '.join(map(one, fields))})", argument_rows(pairs, comments, node.end_lineno + 1)

def is_dataclass(node): return any(d.startswith('dataclass') for d in decorators(node))

def is_documented(node):
    "a method that a reader may call"
    is_public = isinstance(node, ast.FunctionDef) and not node.name.startswith('_')
    return is_public and ast.get_docstring(node) is not None

def class_of(node, text, comments):
    "a class as a Symbol: the arguments of its __init__, or the fields of a dataclass"
    signature, rows = '', []
    inits = [x for x in node.body if getattr(x, 'name', '') == '__init__']
    if is_dataclass(node): signature, rows = fields_of(node, comments)
    elif inits:
        init = function(inits[0], text, comments)
        signature, rows = init.signature, init.arguments
    methods = [function(x, text, comments, node.name) for x in node.body if is_documented(x)]
    return Symbol(node.name, 'class', signature, ast.get_docstring(node) or '', rows, '',
                  node.lineno, source_of(node, text), methods)

def patched(node):
    "the name of the class that a function marked with @patch is put on, or ''"
    marked = any(d.startswith('patch') for d in decorators(node))
    if not marked or not node.args.args: return ''
    kind = node.args.args[0].annotation
    return ast.unparse(kind) if kind else 'Learner'

def symbols(file):
    "the public functions and classes of a module's file, and the methods that it patches"
    text = Path(file).read_text(encoding='utf-8')
    comments, found = comments_of(text), []
    for node in ast.parse(text).body:
        if getattr(node, 'name', '_').startswith('_'): continue
        if isinstance(node, ast.ClassDef): found.append(class_of(node, text, comments))
        elif not isinstance(node, ast.FunctionDef): continue
        elif not patched(node): found.append(function(node, text, comments))
        elif is_documented(node): found.append(function(node, text, comments, patched(node)))
    return found

def module_doc(file): return ast.get_docstring(ast.parse(Path(file).read_text('utf-8'))) or ''
