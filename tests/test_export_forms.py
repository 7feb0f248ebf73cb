"""`bnn export`: the form by the ending or by an option, and where the file goes without a name."""
import pytest
from bnn_bn.cli import bnn, commands, parser_for
from bnn_bn.deploy import load_packed

NAME = 'fashion-reactnet_mini'

@pytest.fixture
def packed(tmp_path, monkeypatch):
    "a packed file, alone in the folder that is worked in"
    monkeypatch.chdir(tmp_path)
    load_packed(NAME).save(tmp_path/'mini.bnn')
    return tmp_path

def names(folder): return sorted(p.name for p in folder.iterdir())

@pytest.mark.parametrize('form', ['onnx', 'qonnx', 'c'])
def test_form_by_option(packed, form):
    "beside a file; here for a name; in a named file; the same bytes as by the ending"
    bnn(['export', 'mini.bnn', f'--{form}'])
    bnn(['export', NAME, f'--{form}'])
    bnn(['export', 'mini.bnn', f'--{form}', f'other.{form}'])
    assert names(packed) == sorted(['mini.bnn', *(f'{s}.{form}' for s in ('mini', 'other', NAME))])
    (packed/'there').mkdir()
    for stem in ('mini', 'other'): # a file has its own name in it
        bnn(['export', 'mini.bnn', f'there/{stem}.{form}'])
        assert (packed/f'{stem}.{form}').read_bytes() == (packed/f'there/{stem}.{form}').read_bytes()

@pytest.mark.parametrize('words, told', [
    ('--onnx --c', '--onnx and --c: one form a call'),
    ('net.onnx --qonnx', 'net.onnx: --qonnx writes a file with the ending .qonnx'),
    ('--c --web page', 'not both or none'),
    ('--c --float-too', '--float-too: a page has it'),
    ('--onnx --ram 5', '--ram 5: not for .onnx')])
def test_refused(packed, capsys, words, told):
    with pytest.raises(SystemExit) as e: bnn(['export', 'mini.bnn', *words.split()])
    said = str(e.value.code) + capsys.readouterr().err
    assert told in said
    assert names(packed) == ['mini.bnn']

def test_what_is_there_stays(packed):
    (packed/'mini.onnx').write_text('kept')
    with pytest.raises(SystemExit): bnn(['export', 'mini.bnn', '--onnx'])
    assert (packed/'mini.onnx').read_text() == 'kept'

@pytest.mark.parametrize('name', commands)
def test_options_between_places(name):
    "an option may stand before, between and behind the words that have a place"
    parser = parser_for(name, name)
    places = [a for a in parser._actions if not a.option_strings]
    option = [a for a in parser._actions if a.option_strings and a.dest != 'help'][-1]
    flag = [option.option_strings[-1], *([] if option.nargs == 0 else ['1'])]
    words = [str(k) for k in range(len(places))]
    last = parser.parse_args([*words, *flag])
    for k in range(len(words)): assert parser.parse_args([*words[:k], *flag, *words[k:]]) == last
