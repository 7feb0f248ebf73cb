"""Make README.md from nbs/index.ipynb: `python tools/readme.py`, in the folder that holds settings.ini.

nbdev resolves its links and drops its hidden cells, nbconvert writes markdown, pictures go to README_files/.
(nbdev_readme does the same through Quarto, which pip cannot install.)
"""
import re, shutil
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter
from nbconvert.writers import FilesWriter
from nbdev.serve import proc_nbs

def make_readme(folder=Path('.')):
    proc_nbs(force=True, n_workers=0)
    nb = nbformat.read('_proc/index.ipynb', 4)
    nb.metadata.language_info = dict(name='python')
    front = dict(re.findall(r"^(title|description): '?(.+?)'?$", re.sub(r'\n +', ' ', nb.cells[0].source), re.M))
    nb.cells[0] = nbformat.v4.new_markdown_cell(f"# {front['title']}\n\n> {front['description']}")
    for cell in nb.cells:
        if cell.source.startswith('#| echo: false'): cell.metadata['transient'] = dict(remove_source=True)
    body, resources = MarkdownExporter().from_notebook_node(nb, resources=dict(output_files_dir='README_files'))
    lines = [line.rstrip() for line in re.sub(r'\n{3,}', '\n\n', body).strip().splitlines()]
    shutil.rmtree(folder/'README_files', ignore_errors=True)
    text = '<!-- made from nbs/index.ipynb by tools/readme.py; edit the notebook -->\n\n' + '\n'.join(lines) + '\n'
    FilesWriter(build_directory=str(folder)).write(text, resources, 'README')

if __name__ == '__main__': make_readme()
