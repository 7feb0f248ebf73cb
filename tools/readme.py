"""Make README.md from nbs/index.ipynb: `python tools/readme.py`, in the folder that holds settings.ini.

nbdev resolves its links and drops its hidden cells, nbconvert writes markdown, pictures go to README_files/.
(nbdev_readme does the same through Quarto, which pip cannot install.)
"""
import shutil
from pathlib import Path
from nbconvert import MarkdownExporter
from nbconvert.writers import FilesWriter
from nbdev.serve import proc_nbs

def make_readme(folder=Path('.')):
    proc = Path(proc_nbs(force=True, n_workers=0) or '_proc')
    body, resources = MarkdownExporter().from_filename(str(proc/'index.ipynb'), resources=dict(output_files_dir='README_files'))
    front, _, rest = body.partition('\n---\n') if body.startswith('---') else ('', '', body)
    lines = [line.rstrip() for line in rest.strip().splitlines()]
    shutil.rmtree(folder/'README_files', ignore_errors=True)
    text = '<!-- made from nbs/index.ipynb by tools/readme.py; edit the notebook -->\n' + '\n'.join(lines) + '\n'
    FilesWriter(build_directory=str(folder)).write(text, resources, 'README')

if __name__ == '__main__': make_readme()
