"""Write what Sphinx reads: `python docs/pages.py` makes _site/src (pages) and _site/extra (texts);
with a folder as argument, its src and extra.

Chapters come from nbs/ in the order of docs/parts.ini, API pages from the modules that
bnn_bn/_modidx.py lists. Everything is read as text, so no other package is needed."""
import ast
import json
import re
import shutil
import sys
from configparser import ConfigParser
from pathlib import Path
from chapters import Links, as_text, heading, module_of, page, read_notebook, read_parts
from symbols import module_doc, symbols

ROOT = Path(__file__).resolve().parent.parent
OTHERS = {'CONTRIBUTING.md': 'contributing.md', 'CHANGELOG.md': 'changelog.md',
          'results/README.md': 'results.md'}
MARKS = re.compile(r'([\\*_<$\[\]{}])')

def settings():
    config = ConfigParser(delimiters=['='], interpolation=None)
    config.read(ROOT/'settings.ini', encoding='utf-8')
    return config['DEFAULT']

def modules():
    "the modules in nbdev's index, without the package's name"
    tree = ast.parse((ROOT/'bnn_bn/_modidx.py').read_text(encoding='utf-8'))
    index = ast.literal_eval(tree.body[0].value)
    return [name.partition('.')[2] for name in index['syms']]

def file_of(module): return ROOT/'bnn_bn'/f'{module.replace(".", "/")}.py'

def escaped(text):
    "a docstring as markdown: marks outside back-ticks stand for themselves"
    pieces = re.split(r'(`[^`]*`)', text)
    return ''.join(p if p.startswith('`') else MARKS.sub(r'\\\1', p) for p in pieces)

def row(cells): return f'| {" | ".join(c.replace("|", chr(92) + "|") for c in cells)} |'

def table(symbol):
    "arguments and what is returned"
    rows = [[f'`{a.names}`', escaped(a.meaning)] for a in symbol.arguments]
    if symbol.returns: rows += [['*returns*', escaped(symbol.returns)]]
    if not rows: return ''
    return '\n'.join(map(row, [['argument', 'meaning'], ['---', '---'], *rows]))

def source_block(symbol, module, blob):
    link = f'{blob}/bnn_bn/{module.replace(".", "/")}.py#L{symbol.line}'
    code = f'```python\n{symbol.source}\n```'
    return (f'<details class="source"><summary>Source</summary>\n\n{code}\n\n'
            f'[on the forge]({link})\n\n</details>')

def entry(symbol, module, blob):
    "one symbol as a directive of Sphinx's Python domain"
    parts = [escaped(symbol.doc), table(symbol), source_block(symbol, module, blob)]
    parts += [entry(m, module, blob) for m in symbol.methods]
    body = '\n\n'.join(p for p in parts if p)
    fence = '``````' if symbol.methods else '`````'
    head = f'{fence}{{py:{symbol.kind}}} {symbol.name}{symbol.signature}'
    return f'{head}\n:module: bnn_bn.{module}\n\n{body}\n{fence}'

def api_page(module, found, chapter, blob):
    "the page of a module"
    lines = [f'# bnn_bn.{module}', f'> {escaped(module_doc(file_of(module)))}']
    if chapter: lines += [f'Explained and tested in the chapter [](../{chapter}.ipynb).']
    lines += [f'```{{py:module}} bnn_bn.{module}\n```']
    lines += [f'## {s.name.replace("_", chr(92) + "_")}\n\n{entry(s, module, blob)}' for s in found]
    return '\n\n'.join(lines) + '\n'

def api_index(found):
    "the table of all modules"
    rows = [[f'[`{m}`]({m}.md)', escaped(module_doc(file_of(m)))] for m in found]
    text = '\n'.join(map(row, [['module', 'what it has'], ['---', '---'], *rows]))
    pages = '\n'.join(found)
    return (f'# API\n\nAll modules of `bnn_bn`, with the public functions and classes of each.\n'
            f'\n{text}\n\n```{{toctree}}\n:hidden:\n\n{pages}\n```\n')

def write(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding='utf-8')

def tree(caption, names):
    lines = '\n'.join(names)
    return f'```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```'

def contents(parts):
    "the sidebar, as the last cell of the first page"
    trees = [tree(p.title, [f'About this part <{p.page}>', *p.chapters]) for p in parts]
    trees += [tree('Reference', ['api/index', 'results', 'contributing', 'changelog'])]
    return dict(cell_type='markdown', id='contents', metadata={}, source='\n\n'.join(trees))

def llms(parts, notebooks, name, about, base):
    "the list of all pages with a sentence on each, as llmstxt.org wants it"
    lines = [f'# {name}', f'> {about}']
    for p in parts:
        heads = {c: heading(notebooks[c]) for c in p.chapters}
        rows = [f'- [{t}]({base}/text/{c}.md): {d}' for c, (t, d) in heads.items()]
        lines += [f'## {p.title}', p.about, '\n'.join(rows)]
    rows = [f'- [{m}]({base}/text/api/{m}.md): {module_doc(file_of(m))}' for m in modules()]
    return '\n\n'.join(lines + ['## API', '\n'.join(rows)]) + '\n'

def all_chapters(parts):
    "the chapters of the parts; those that no part names come last"
    named = [c for p in parts for c in p.chapters]
    found = [str(f.relative_to(ROOT/'nbs').with_suffix('')) for f in (ROOT/'nbs').rglob('*.ipynb')]
    missing = sorted(set(found) - set(named) - {'index'})
    missing = [m for m in missing if '.ipynb_checkpoints' not in m]
    if missing: parts[-1].chapters += missing
    return named + missing

def write_chapters(out, parts, notebooks, links):
    for name in ['index', *notebooks]:
        nb = page(ROOT/f'nbs/{name}.ipynb', name, links)
        write(out/f'extra/text/{name}.md', as_text(nb))
        if name == 'index': nb['cells'].append(contents(parts))
        write(out/f'src/{name}.ipynb', json.dumps(nb))

def write_api(out, found, chapters, blob):
    write(out/'src/api/index.md', api_index(list(found)))
    for module, entries in found.items():
        text = api_page(module, entries, chapters.get(module), blob)
        write(out/f'src/api/{module}.md', text)
        write(out/f'extra/text/api/{module}.md', file_of(module).read_text(encoding='utf-8'))

def write_parts(out, parts, links):
    "the page of each part"
    for p in parts:
        text = (ROOT/'nbs'/p.page).read_text(encoding='utf-8')
        write(out/'src'/p.page, links.markdown(text, '', p.folder))

def write_others(out, links):
    "CONTRIBUTING.md and its like"
    for file, name in OTHERS.items():
        text = (ROOT/file).read_text(encoding='utf-8')
        write(out/'src'/name, links.markdown(text, '', ''))

def full_names(found):
    "{short name: [full names]} of all public functions and classes"
    names = {}
    for module, entries in found.items():
        for s in entries: names.setdefault(s.name, []).append(f'bnn_bn.{module}.{s.name}')
    return names

def main(out=ROOT/'_site'):
    for folder in ('src', 'extra'): shutil.rmtree(out/folder, ignore_errors=True)
    s, parts = settings(), read_parts(ROOT/'docs/parts.ini')
    notebooks = {c: read_notebook(ROOT/f'nbs/{c}.ipynb') for c in all_chapters(parts)}
    chapters = {module_of(nb): name for name, nb in notebooks.items()}
    found = {m: symbols(file_of(m)) for m in modules()}
    blob = f"{s['git_url']}/blob/{s['branch']}"
    pages = {name: f'{c}.ipynb' for c in notebooks for name in (c, Path(c).name)}
    others = OTHERS | {f'nbs/{p.page}': p.page for p in parts}
    links = Links(ROOT, blob, pages, full_names(found), others)
    write_chapters(out, parts, notebooks, links)
    write_api(out, found, chapters, blob)
    write_parts(out, parts, links)
    write_others(out, links)
    base = s['doc_host'] + s['doc_baseurl']
    about = f"{s['description']}. Each page below is plain text."
    write(out/'extra/llms.txt', llms(parts, notebooks, s['title'], about, base))
    write(out/'extra/.nojekyll', '')

if __name__ == '__main__': main(*map(Path, sys.argv[1:]))
