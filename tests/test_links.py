"Every link leads somewhere; each notebook and each public name has its place on the site."
import ast
import re
import sys
from pathlib import Path
from urllib.parse import urlparse
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'docs'))
import pages  # noqa: E402
from chapters import LINK, heading, read_notebook, read_parts, text_of  # noqa: E402
from symbols import symbols  # noqa: E402

NOTEBOOKS = sorted(f for f in (ROOT/'nbs').rglob('*.ipynb') if 'checkpoint' not in str(f.parent))
FOLDERS = *(ROOT/'tests').glob('*.md'), *(ROOT/'nbs').glob('*/README.md')
TEXTS = [*ROOT.glob('*.md'), ROOT/'results/README.md', *FOLDERS]
CODE = re.compile(r'```.*?```|`[^`\n]*`', re.S)
HEADING = re.compile(r'^#+ (.+)$', re.M)
ARXIV = re.compile(r'/(abs|pdf)/\d{4}\.\d{4,5}(v\d+)?')
BARE = re.compile(r'<?(https?://[^\s)>\]\'"`|]+)')

def prose(file):
    "the text of a markdown file, or of a notebook's markdown cells"
    if file.suffix == '.md': return file.read_text(encoding='utf-8')
    cells = read_notebook(file)['cells']
    return '\n\n'.join(text_of(c) for c in cells if c['cell_type'] == 'markdown')

def links(file): return [m[2] for m in LINK.finditer(CODE.sub('`x`', prose(file)))]

def anchors(file):
    "the anchors of headings as forges and the site write them"
    words = [re.sub(r'[^\w\- ]', '', h).strip() for h in HEADING.findall(prose(file))]
    both = [w.replace(' ', '-') for w in words]
    return set(both) | {w.lower() for w in both}

def fault(link, file):
    "what is wrong with a link inside the repository, or ''"
    path, _, anchor = link.partition('#')
    target = (file.parent/path).resolve() if path else file
    if file.stem == 'index' and not target.exists(): target = ROOT/path   # README is made from it
    if not target.exists(): return f'{link}: no such file'
    is_text = target.suffix in ('.md', '.ipynb')
    if anchor and is_text and anchor not in anchors(target): return f'{link}: no such heading'
    return ''

def address_fault(link):
    "what is wrong with the form of an external address, or ''"
    parts = urlparse(link)
    host = parts.hostname or ''
    if parts.scheme != 'https': return f'{link}: not https'
    if not re.fullmatch(r'([a-z0-9-]+\.)+[a-z]{2,}', host): return f'{link}: no host'
    if re.search(r'[\s<>"\\]|[.,;:]$|//', parts.path): return f'{link}: path'
    if host == 'arxiv.org' and not ARXIV.fullmatch(parts.path):
        return f'{link}: no arXiv number'
    if host == 'github.com' and len(parts.path.strip('/').split('/')) < 2:
        return f'{link}: no repository'
    return ''

@pytest.mark.parametrize('file', NOTEBOOKS + TEXTS, ids=lambda f: str(f.relative_to(ROOT)))
def test_links(file):
    inside = [x for x in links(file) if ':' not in x]
    outside = BARE.findall(prose(file))
    wrong = [fault(x, file) for x in inside]
    wrong += [address_fault(x.rstrip('.,;:')) for x in outside if 'localhost' not in x]
    assert not [w for w in wrong if w]

@pytest.mark.parametrize('link,word', [
    ('http://arxiv.org/abs/2104.08215', 'https'), ('https://arxiv/abs/2104.08215', 'host'),
    ('https://arxiv.org/abs/210408215', 'arXiv'), ('https://github.com/VITA-Group', 'repository'),
    ('https://example.org/a//b', 'path')])
def test_a_wrong_address_is_seen(link, word): assert word in address_fault(link)

def test_a_wrong_link_is_seen():
    here = ROOT/'CONTRIBUTING.md'
    assert 'file' in fault('nowhere.md', here)
    assert 'heading' in fault('README.md#nowhere', here)
    assert not fault('README.md', here)

@pytest.mark.parametrize('link,moved', [
    ('1_one_bit/02_conv.ipynb', 'nbs/1_one_bit/02_conv.ipynb'),
    ('1_one_bit/02_conv.ipynb#a', 'nbs/1_one_bit/02_conv.ipynb#a'),
    ('../results/README.md', 'results/README.md'), ('CONTRIBUTING.md', 'CONTRIBUTING.md'),
    ('https://arxiv.org/abs/2104.08215', 'https://arxiv.org/abs/2104.08215')])
def test_links_of_the_readme(link, moved, monkeypatch):
    "README.md is made from a notebook in nbs/"
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT/'tools'))
    import readme
    assert readme.from_root(f'see [x]({link}).') == f'see [x]({moved}).'

def test_parts_name_every_notebook_once():
    "a new notebook gets its place in docs/parts.ini"
    named = [c for p in read_parts(ROOT/'docs/parts.ini') for c in p.chapters]
    found = {str(f.relative_to(ROOT/'nbs').with_suffix('')) for f in NOTEBOOKS} - {'index'}
    assert sorted(set(named) ^ found) == []
    assert len(named) == len(set(named))

def test_every_script_of_the_bench_is_listed():
    listed = (ROOT/'bench/README.md').read_text()
    assert [f.name for f in sorted((ROOT/'bench').glob('*.py')) if f'| `{f.name}` |' not in listed] == []

@pytest.mark.parametrize('part', read_parts(ROOT/'docs/parts.ini'), ids=lambda p: p.folder)
def test_a_part_lists_its_chapters(part):
    "in the order of docs/parts.ini, each with a sentence"
    file = ROOT/'nbs'/part.page
    rows = re.findall(r'^- \[\w+\]\((\S+)\.ipynb\): \w.+\.$', file.read_text(encoding='utf-8'), re.M)
    found = [(file.parent/r).resolve().relative_to(ROOT/'nbs') for r in rows]
    assert [f.as_posix() for f in found] == part.chapters
    assert file.read_text(encoding='utf-8').startswith(f'# {part.title}\n\n> {part.about}\n')

@pytest.mark.parametrize('file', NOTEBOOKS, ids=lambda f: f.stem)
def test_heading(file):
    title, about = heading(read_notebook(file))
    assert title and about and '\n' not in about

def exported(module):
    "the functions and classes of a module's __all__"
    tree = ast.parse(pages.file_of(module).read_text(encoding='utf-8'))
    names = next((ast.literal_eval(n.value) for n in tree.body
                  if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == '__all__'), [])
    kinds = (ast.FunctionDef, ast.ClassDef)
    defined = {n.name for n in tree.body if isinstance(n, kinds)}
    return set(names) & defined

@pytest.mark.parametrize('module', pages.modules())
def test_public_names_have_an_entry(module):
    found = [s.name for s in symbols(pages.file_of(module))]
    assert exported(module) <= set(found)

SAMPLE = '''
"A module."
from dataclasses import dataclass
@dataclass
class Box:
    "A box."
    side:int = 3   # in pixels
    def area(self): "side squared"; return self.side**2
def grow(
    box:Box, # the one to grow
    by:int=1, *, twice=False, # how much; and again?
    **kwargs # for later
)->Box: # a new one
    "A larger box."
    return box
@patch
def show(self:Box,
    where # a canvas
):
    "Draw it."
'''

def test_symbols(tmp_path):
    (tmp_path/'sample.py').write_text(SAMPLE)
    box, grow, show = symbols(tmp_path/'sample.py')
    rows = lambda s: [(a.names, a.meaning) for a in s.arguments]
    assert (box.kind, box.signature) == ('class', '(side: int=3)')
    assert rows(box) == [('side', 'in pixels')]
    assert [m.name for m in box.methods] == ['Box.area']
    assert rows(grow) == [('box', 'the one to grow'), ('by, twice', 'how much; and again?'),
                          ('**kwargs', 'for later')]
    assert grow.signature == '(box: Box, by: int=1, *, twice=False, **kwargs) -> Box'
    assert grow.returns == 'a new one' and grow.source.startswith('def grow(')
    assert (show.name, show.signature) == ('Box.show', '(where)')
    assert rows(show) == [('where', 'a canvas')]

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "the pages that Sphinx would read"
    out = tmp_path_factory.mktemp('site')
    pages.main(out)
    return out

def page_text(file):
    "the prose of a page: an API page also holds sources"
    return re.sub(r'<details.*?</details>', '', prose(file), flags=re.S)

def test_pages_link_to_pages(site):
    wrong = []
    for file in [*(site/'src').rglob('*.ipynb'), *(site/'src').rglob('*.md')]:
        targets = [m[2] for m in LINK.finditer(CODE.sub('', page_text(file)))]
        inside = [t.partition('#')[0] for t in targets if ':' not in t]
        wrong += [(file.name, t) for t in inside if t and not (file.parent/t).exists()]
    assert wrong == []

def test_texts_link_to_texts_and_pages(site):
    "as they lie on the site: the texts below text/, the pages beside it"
    wrong, seen = [], set()
    for file in (site/'extra/text').rglob('*.md'):
        if file.parent.name == 'api': continue # sources
        for m in LINK.finditer(CODE.sub('', prose(file))):
            path = m[2].partition('#')[0]
            if ':' in path or not path: continue
            place = (file.parent/path).resolve().relative_to((site/'extra').resolve())
            page = (site/'src'/place).with_suffix('.md')
            seen.add(place.suffix)
            there = page if place.suffix == '.html' else site/'extra'/place
            if not there.exists(): wrong.append((file.name, m[2]))
    assert wrong == [] and seen == {'.md', '.html'}

def test_texts_show_what_a_cell_has_shown(site):
    assert not [f.name for f in (site/'extra/text').rglob('*.md') if '<IPython' in f.read_text(encoding='utf-8')]

def test_pages_link_to_names(site):
    "each reference to a name has its entry on an API page"
    entries = '\n'.join(f.read_text(encoding='utf-8') for f in (site/'src/api').glob('*.md'))
    known = re.findall(r'\{py:(?:function|class|method)\} ([\w.]+).*\n:module: (\S+)', entries)
    full = {f'{module}.{name}' for name, module in known}
    used = [m for f in (site/'src').rglob('*.ipynb')
            for m in re.findall(r'\{py:obj\}`\S+ <([\w.]+)>`', prose(f))]
    assert len(used) > 100 and set(used) <= full

def test_pages_show_no_directive(site):
    for file in (site/'src').rglob('*.ipynb'):
        cells = read_notebook(file)['cells']
        code = [text_of(c) for c in cells if c['cell_type'] == 'code']
        assert not [c for c in code if re.search(r'^#\|', c, re.M)], file.name

def test_llms_txt(site):
    "one line for each chapter and module, each to a text that is there"
    text = (site/'extra/llms.txt').read_text(encoding='utf-8')
    found = re.findall(r'\((https://\S+?/text/(\S+))\)', text)
    assert len(found) == len(NOTEBOOKS) - 1 + len(pages.modules())
    assert all((site/'extra/text'/name).exists() for _, name in found)
