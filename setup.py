"Package metadata comes from settings.ini, which nbdev reads too."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup, find_packages

cfg = ConfigParser(delimiters=['='], interpolation=None)
cfg.read('settings.ini', encoding='utf-8')
s = cfg['DEFAULT']
extras = {k: s[f'{k}_requirements'].split() for k in ('dev', 'export', 'qonnx')}
scripts = s.get('console_scripts', '').split()

setup(
    name=s['lib_name'],
    version=s['version'],
    description=s['description'],
    long_description=Path('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    keywords=s['keywords'],
    author=s['author'],
    author_email=s['author_email'],
    url=s['git_url'],
    license='MIT',
    packages=find_packages(include=['bnn_bn*']),
    package_data={'bnn_bn': ['embedded/*', 'pretrained/*', 'py.typed']},
    zip_safe=False,
    python_requires='>=' + s['min_python'],
    install_requires=s['requirements'].split(),
    extras_require=extras,
    entry_points={'console_scripts': scripts, 'nbdev': ['bnn_bn=bnn_bn._modidx:d']},
)
