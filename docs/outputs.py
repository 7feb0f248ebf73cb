"""Outputs of cells on a narrow screen: columns of words begin at the left, and a wide picture keeps
its size and is moved by the finger. Both get a class here; `static/site.css` does the rest."""
import re
from pathlib import Path
from bs4 import BeautifulSoup
from docutils import nodes
import imagesize

WIDE = 560 # pixels
NUMBER = re.compile(r'[-+]?[\d.,]*(e[-+]?\d+)?( ?%)?|nan|inf|-inf|none|true|false|\[.*\]', re.I)

def is_words(cells):
    "does a column hold words rather than numbers?"
    texts = [cell.get_text().strip() for cell in cells]
    return not all(map(NUMBER.fullmatch, texts))

def mark(cells, name):
    for cell in cells: cell['class'] = [*cell.get('class', []), name]

def mark_columns(table):
    "`words` for the columns of words, with their heading"
    rows = [row.find_all(['th', 'td']) for row in table.select('tbody tr')]
    if len({len(row) for row in rows}) != 1: return # joined cells
    heads = [row.find_all('th') for row in table.select('thead tr')]
    heads = [row for row in heads if len(row) == len(rows[0])]
    for i, column in enumerate(zip(*rows)):
        if not is_words(column): continue
        mark([*column, *(row[i] for row in heads)], 'words')

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
