"""Outputs of cells on a narrow screen. Columns of words begin at the left, numbers and short names
stay on one line, and a wide picture keeps its size and is moved by the finger. The classes are set
here; `static/site.css` does the rest."""
import re
from pathlib import Path
from bs4 import BeautifulSoup
from docutils import nodes
import imagesize

WIDE = 560 # pixels
SHORT = 24 # characters
NUMBERS = re.compile(r'([-+\d.,:/%()\[\] ]|e[-+]|nan|inf|none|true|false)*', re.I) # or pairs, lists

def kinds(texts):
    "the classes of a column"
    if all(map(NUMBERS.fullmatch, texts)): return ['short']
    return ['words', 'short'] if max(map(len, texts)) <= SHORT else ['words']

def mark(cells, names):
    for cell in cells: cell['class'] = [*cell.get('class', []), *names]

def mark_columns(table):
    "`words` or `short` for the cells of each column, and for its heading if that holds words"
    rows = [row.find_all(['th', 'td']) for row in table.select('tbody tr')]
    if len({len(row) for row in rows}) != 1: return # joined cells
    heads = [row.find_all('th') for row in table.select('thead tr')]
    heads = [row for row in heads if len(row) == len(rows[0])]
    for i, column in enumerate(zip(*rows)):
        found = kinds([cell.get_text().strip() for cell in column])
        mark(column, found)
        if 'words' in found: mark([row[i] for row in heads], ['words'])

def mark_tables(app, doctree):
    for node in doctree.findall(nodes.raw):
        if '<table' not in node.astext(): continue
        soup = BeautifulSoup(node.astext(), 'html.parser')
        for table in soup.find_all('table'): mark_columns(table)
        node.children = [nodes.Text(str(soup))]

def mark_pictures(app, doctree):
    for node in doctree.findall(nodes.image):
        file = Path(app.srcdir)/node['uri']
        if not file.is_file() or imagesize.get(file)[0] <= WIDE: continue
        node['classes'].append('wide')

def setup(app):
    app.connect('doctree-read', mark_tables)
    app.connect('doctree-read', mark_pictures)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
