"The notebooks as pages: the order of reading, links, directives of nbdev, and a text version."
import json
import re
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

DIRECTIVE = re.compile(r'#\|\s*(\S+)(.*)')
HIDDEN = {'hide', 'default_exp'}                # cells that no reader needs
FOLDED = {'export', 'exporti'}                  # code that opens with a click
FENCED = re.compile(r'(```.*?```)', re.S)
LINK = re.compile(r'\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)')
CODE = re.compile(r'(?<![\[`])`(\w[\w./]*)(\(\))?`(?!`)')
PICTURE = re.compile(r'imshow|show_images?|show_batch|plot_pictures')

@dataclass
class Part:
    "A caption of the sidebar with its chapters"
    title: str
    about: str
    chapters: list        # notebooks below nbs/, without their suffix
    folder: str           # below nbs/; its README.md is the page of the part

    @property
    def page(self): return f'{self.folder}/README.md'

def read_parts(file):
    "the parts of the book from docs/parts.ini"
    config = ConfigParser(delimiters=['='], interpolation=None)
    config.read(file, encoding='utf-8')
    sections = [config[name] for name in config.sections()]
    return [Part(s.name, s['about'], chapters_of(s), s['folder']) for s in sections]

def chapters_of(section):
    "a name without a folder lies in the folder of its part"
    names = section['chapters'].split()
    return [n if '/' in n else f"{section['folder']}/{n}" for n in names]

def read_notebook(file): return json.loads(Path(file).read_text(encoding='utf-8'))

def text_of(cell): return ''.join(cell['source'])

def directives(source):
    "the words of the lines `#| word`, and the source without those lines"
    lines = source.splitlines()
    words = {m[1].rstrip(':'): m[2].strip() for m in map(DIRECTIVE.match, lines) if m}
    return words, '\n'.join(x for x in lines if not DIRECTIVE.match(x)).strip('\n')

def heading(nb):
    "title and subtitle of a notebook, from its first cell"
    found = re.match(r'# (.+?)\s*\n+> (.+?)(?:\n\n|\Z)', text_of(nb['cells'][0]), re.S)
    return found[1], ' '.join(found[2].replace('\n> ', ' ').split())

def module_of(nb):
    "the module that a notebook exports, or ''"
    code = [text_of(c) for c in nb['cells'] if c['cell_type'] == 'code']
    found = [directives(c)[0].get('default_exp') for c in code]
    return next((f for f in found if f), '')

class Links:
    "Where the links of a page lead: other pages, API entries, files on the forge."
    def __init__(self, root, blob, pages, names, others):
        self.root = root      # of the repository
        self.blob = blob      # address of its files on the forge
        self.pages = pages    # {name of a chapter: its page}
        self.names = names    # {name of a public function or class: [full names]}
        self.others = others  # {file of the repository: its page}

    def target(self, link, here):
        "a link of the notebook in folder `here` as one of its page"
        path, mark, anchor = link.partition('#')
        if ':' in link or not path: return link
        files = [(self.root/folder/path).resolve() for folder in (f'nbs/{here}', '.')]
        file = next((f for f in files if f.exists()), None)
        if file is None or file.suffix == '.ipynb': return link
        name = str(file.relative_to(self.root))
        up = '../'*len(Path(here).parts)
        if name in self.others: return up + self.others[name]
        return f'{self.blob}/{name}{mark}{anchor}'

    def code(self, match, module, here):
        "a name in back-ticks: a chapter, a public name of ours, or as it was"
        name = match[1]
        up = '../'*len(Path(here).parts)
        if name in self.pages: return f'[`{name}`]({up}{self.pages[name]})'
        full = self.names.get(name, [])
        own = [f for f in full if f == f'{module}.{name}'] or full
        return f'{{py:obj}}`{name} <{own[0]}>`' if len(own) == 1 else match[0]

    def plain(self, text, module, here):
        "links and names of text without fences"
        parts, end = [], 0
        for m in LINK.finditer(text):
            parts += [CODE.sub(lambda c: self.code(c, module, here), text[end:m.start()])]
            parts += [f'[{m[1]}]({self.target(m[2], here)})']
            end = m.end()
        return ''.join(parts) + CODE.sub(lambda c: self.code(c, module, here), text[end:])

    def markdown(self, text, module, here):
        pieces = FENCED.split(text)
        return ''.join(p if p.startswith('```') else self.plain(p, module, here) for p in pieces)

def tags_of(words, source):
    "what the page does with a code cell"
    tags = []
    if words.get('echo') == 'false': tags += ['remove-input']
    elif words.keys() & FOLDED: tags += ['hide-input']
    if PICTURE.search(source): tags += ['photo']
    return tags

def code_cell(cell):
    "a code cell without directives, or None if readers do not need it"
    words, source = directives(text_of(cell))
    if words.keys() & HIDDEN or not source: return None
    metadata = dict(tags=tags_of(words, source))
    return dict(cell, source=source, metadata=metadata)

def convert(cell, links, module, here):
    if cell['cell_type'] == 'code': return code_cell(cell)
    return dict(cell, source=links.markdown(text_of(cell), module, here))

def origin(name, module, links):
    "the line under a title: where the chapter comes from, and what it makes"
    up = '../'*name.count('/')
    parts = [f'[notebook]({links.blob}/nbs/{name}.ipynb)']
    if module and not module.startswith('_'): parts += [f'module [`bnn_bn.{module}`]({up}api/{module}.md)']
    return dict(cell_type='markdown', id='origin', metadata={}, source=' · '.join(parts))

def page(file, name, links):
    "the notebook of a page"
    nb = read_notebook(file)
    module, here = module_of(nb), str(Path(name).parent)
    here = '' if here == '.' else here
    full = f'bnn_bn.{module}' if module else ''
    cells = [convert(c, links, full, here) for c in nb['cells']]
    cells = [c for c in cells if c]
    if name != 'index': cells.insert(1, origin(name, module, links))
    metadata = dict(nb['metadata'], language_info=dict(name='python'))
    return dict(nb, cells=cells, metadata=metadata)

def plain_outputs(cell):
    "the outputs of a cell that are text"
    found = []
    for o in cell.get('outputs', []):
        data = o.get('data', {})
        plain = data.get('text/plain', o.get('text', ''))
        found += [''.join(data.get('text/markdown', plain))]
    return [f for f in found if f and not f.startswith('<Figure')]

def text_link(link):
    "a link of a page as one of its text, which lies below text/ among those of chapters and modules"
    path, mark, anchor = link.partition('#')
    if ':' in link or not path or re.match(r'(\.\./)*api/', path): return link
    if path.endswith('.ipynb'): return f"{path.removesuffix('.ipynb')}.md{mark}{anchor}"
    return f"../{path.removesuffix('.md')}.html{mark}{anchor}" # a page that has no text

def text_links(source):
    pieces = FENCED.split(source)
    def moved(text): return LINK.sub(lambda m: f'[{m[1]}]({text_link(m[2])})', text)
    return ''.join(p if p.startswith('```') else moved(p) for p in pieces)

def as_text(nb):
    "a page as markdown, for those who read without a browser"
    lines = []
    for cell in nb['cells']:
        source = text_of(cell)
        if cell['cell_type'] == 'markdown': lines += [text_links(source)]
        elif 'remove-input' not in cell['metadata']['tags']: lines += [f'```python\n{source}\n```']
        lines += [f'```\n{o}\n```' for o in plain_outputs(cell)]
    return re.sub(r'\{py:obj\}`(\S+) <\S+>`', r'`\1`', '\n\n'.join(lines)) + '\n'
