"The help of each command: complete, from the one place where the options stand, and without torch."
import contextlib
import dataclasses
import importlib
import inspect
import io
import re
import shlex
import subprocess
import sys
import pytest
from fastcore.docments import docments
from bnn_bn.cli import commands, parser_for, run_command
from bnn_bn.core.signatures import NEEDED, read_keys, read_options
from bnn_bn.train.options import command_line, spelt_out, train_parser
from bnn_bn.train.recipes import OwnPictures, Recipe, _words, recipes
from bnn_bn.train.run import train
from bnn_bn.train.steps import schedules

LIGHT = """
import contextlib, io, sys
from bnn_bn import cli
def ends(call, *args):
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        try: call(*args)
        except SystemExit as e: return e.code, said.getvalue()
    return 0, said.getvalue()
for name in cli.commands:
    code, text = ends(cli.bnn, [name, '--help'])
    assert not code and 'usage' in text, (name, text)
    code, text = ends(cli.bnn, [name, '--no-such-option'])
    assert code == 2 and text.count(chr(10)) == 1, (name, text)
for name in ('demo', 'train', 'eval', 'pack', 'bench'):
    sys.argv = [f'bnn_{name}', '--help']
    code, text = ends(getattr(cli, f'bnn_{name}'))
    assert not code and f'usage: bnn_{name}' in text, text
print(*sorted({'torch', 'fastai', 'numpy', 'numba', 'matplotlib'} & set(sys.modules)))
"""

def test_no_help_imports_torch():
    "nor does a wrong option, by the new names and by the old ones"
    done = subprocess.run([sys.executable, '-c', LIGHT], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ''), done.stderr[-800:] + done.stdout

# words behind `train`, and whether the command that is kept names a place
KEPT = ('cifar10-plus --start ""', 'imagenet --teacher ""', 'cifar10 --model "a b" --teacher "runs/my run"',
        'folder --sizes "" --lr .1', 'cifar100-plus --compile --amp bf16 --valid-images 9')

@pytest.mark.parametrize('line', KEPT)
def test_the_command_that_is_kept_is_of_this_training(line):
    "a shell reads the words that were typed, empty ones and those with spaces too"
    parse = train_parser().parse_args
    given = parse(spelt_out(shlex.split(line)))
    assert parse(shlex.split(command_line(given))[1:]) == given

def test_the_command_that_is_kept_names_no_place():
    given = train_parser().parse_args('cifar10 --path /a --out /b --teacher-file /c'.split())
    assert '/' not in command_line(given)

def test_the_help_of_a_recipe_names_every_word():
    "of the fields that take one of a few"
    said = {o.name: o.help for kind in ('OwnPictures', 'Recipe') for o in read_options('train.recipes', kind)[1]}
    for field in ('schedule', 'norm', 'stem', 'rules', 'select', 'start'):
        for word in filter(None, _words[field]): assert repr(word) in said[field], (field, word)
    assert set(_words['schedule']) == set(schedules)

def function_of(name):
    command = commands[name]
    function = getattr(importlib.import_module(f'bnn_bn.{command.module}'), command.function)
    return getattr(function, '__wrapped__', function)

def default_of(parameter):
    return NEEDED if parameter.default is parameter.empty else parameter.default

def same_arguments(options, function, docs):
    "as the source was read, and as the imported function has it"
    parameters = inspect.signature(function).parameters
    assert [o.name for o in options] == list(parameters)
    for o in options:
        p = parameters[o.name]
        if not o.nargs: assert (o.default, o.help) == (default_of(p), docs[o.name] or ''), o.name
        if p.annotation in (int, float, bool): assert o.type is p.annotation, o.name

@pytest.mark.parametrize('name', [n for n in commands if n != 'train'])
def test_options_are_those_of_the_function(name):
    about, options = read_options(commands[name].module, commands[name].function)
    function = function_of(name)
    assert about == inspect.getdoc(function)
    same_arguments(options, function, docments(function))

def test_options_of_a_training():
    "the arguments of `train` and the fields of a recipe, with their comments"
    parser = parser_for('train', 'bnn train')
    actions = {a.dest: a for a in parser._actions}
    for name, text in docments(train).items():
        if name in ('r', 'dls', 'writer', 'command', 'return'): continue
        assert name in actions, name
        if name not in ('out', 'download'): assert actions[name].help == text, name
    docs = docments(Recipe) | docments(OwnPictures)
    for f in dataclasses.fields(Recipe):
        if f.name == 'data': continue
        assert (actions[f.name].help, actions[f.name].type) == (docs[f.name], f.type), f.name
    assert read_keys('train.recipes', 'recipes') == list(recipes)

def test_values_reach_the_function(monkeypatch):
    "types, switches and hyphens"
    seen = {}
    module = importlib.import_module('bnn_bn.train.runs')
    def stand_in(): pass
    stand_in.__wrapped__ = lambda **kw: seen.update(kw)
    monkeypatch.setattr(module, 'bnn_runs', stand_in)
    run_command('runs', ['--folder', 'x', '--json', '--debug'], 'bnn runs')
    assert seen == dict(folder='x', clean=False, json=True, debug=False)

def flags_of(parser):
    "its options by their long names, each with what it does"
    return {f: a for a in parser._actions for f in a.option_strings if f[:2] == '--'}

def parsed(parser, words):
    places = [a for a in parser._actions if not a.option_strings and a.nargs in (None, '+')]
    return parser.parse_args(['1' for _ in places] + words)

@pytest.mark.parametrize('name', commands)
def test_both_spellings_of_every_option(name):
    "`--save_steps 9` and `--save_steps=9` as `--save-steps 9`; values stay as they are"
    parser = parser_for(name, name)
    for flag, action in flags_of(parser).items():
        if '-' not in flag[2:]: continue
        value = [] if action.nargs == 0 else ['1']
        hyphens = parsed(parser, [flag, *value])
        old = '--' + flag[2:].replace('-', '_')
        assert hyphens == parsed(parser, [old, *value]) != parsed(parser, [])
        if value: assert hyphens == parsed(parser, [f'{old}=1'])

@pytest.mark.parametrize('words', ['x a_b --out c_d-e', 'x a_b --out=c_d-e', '--out c_d-e -- x a_b'])
def test_values_keep_their_underscores(words):
    given = parser_for('export', 'bnn export').parse_args([*words.replace('--out', '--web').split()])
    assert (given.source, given.out, given.web) == ('x', 'a_b', 'c_d-e')

@pytest.mark.parametrize('words', ['-- FILE PLACES', '--which w -- FILE PLACES', 'FILE -- PLACES',
                                   'FILE --which w -- PLACES', 'FILE x --which w -- PLACES', '-- FILE x PLACES'])
@pytest.mark.parametrize('file, places', (('a', 'b'), ('-a', '-b --which')))
def test_what_is_behind_a_lone_dash_is_no_option(words, file, places):
    "wherever options stand, and however many places are before it"
    if '--' in words.split('FILE')[1]: file = 'a'
    line = words.replace('FILE', file).replace('PLACES', places).split()
    given = parser_for('classify', 'bnn classify').parse_args(line)
    assert given.file == file and given.pictures == ['x']*('x' in words) + places.split()
    assert given.which == ('w' if 'which w' in words else 'best')

@pytest.mark.parametrize('words', ['', 'DIR', '--folder DIR', '--folder=DIR', '--clean DIR', 'DIR --clean'])
def test_the_folder_of_runs(words):
    "by its place or by its option, not by both"
    parser = parser_for('runs', 'bnn runs')
    given = parser.parse_args(words.split())
    assert given.folder == ('DIR' if words else 'runs') and given.clean == ('clean' in words)
    for twice in ('a --folder b', '--folder b a'):
        with pytest.raises(SystemExit): parser.parse_args(twice.split())

@pytest.mark.parametrize('name', commands)
def test_help_shows_every_option(name):
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit):
        run_command(name, ['--help'], f'bnn {name}')
    flags = set(re.findall(r'--[\w-]+', said.getvalue()))
    assert set(flags_of(parser_for(name, name))) <= flags
    assert not [f for f in flags if '_' in f and f != '--nproc_per_node'] # of torchrun
    assert f'usage: bnn {name}' in said.getvalue()
