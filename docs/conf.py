"Sphinx's settings; `make docs` writes the pages that it reads (docs/pages.py)."
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'docs'))
config = ConfigParser(delimiters=['='], interpolation=None)
config.read(ROOT/'settings.ini', encoding='utf-8')
settings = config['DEFAULT']

project = settings['title']
author = settings['author']
copyright = settings['copyright']
release = settings['version']
extensions = ['myst_nb', 'mathml', 'outputs']

nb_execution_mode = 'off'
nb_render_markdown_format = 'gfm'
nb_merge_streams = True
nb_code_prompt_show = 'Show the code behind'
nb_code_prompt_hide = 'Hide the code behind'
myst_enable_extensions = ['dollarmath', 'amsmath']
myst_heading_anchors = 4
add_module_names = False
smartquotes = False
python_maximum_signature_line_length = 70
toc_object_entries_show_parents = 'hide'

html_theme = 'furo'
pygments_style = 'friendly'
pygments_dark_style = 'github-dark'
html_title = settings['title']
html_math_renderer = 'mathml'
html_static_path = [str(ROOT/'docs/static')]
html_css_files = ['site.css']
html_extra_path = [str(ROOT/'_site/extra')]
html_baseurl = settings['doc_host'] + settings['doc_baseurl'] + '/'
html_copy_source = False
html_show_sourcelink = False
html_theme_options = dict(
    source_repository='', footer_icons=[], navigation_with_keys=True,
    light_css_variables={'color-brand-primary': '#0a5f8f', 'color-brand-content': '#0a5f8f'},
    dark_css_variables={'color-brand-primary': '#6cb8e6', 'color-brand-content': '#6cb8e6'})
